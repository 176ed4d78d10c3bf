"""The configurations that the user's document shows, as they stand there."""

from pathlib import Path

import pytest
import yaml

from sjepa.entrypoints.systems import SYSTEMS
from sjepa.entrypoints.train import train
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.weights import load_weights
from tests.support.runs import SMALL

ROOT = Path(__file__).parents[2]

TWO_PHASES = """
train:
  phase: 1
  phase2_start_epoch: 50 # switch to the online encoder GMM mid-run
  masked_only_epoch: 75 # then drop the visible loss + turn augmentation off
gmm:
  num_clusters: 100 # K in Phase 1
  num_clusters_phase2: 500 # K after the transition
  auto_layer: true # pick the GMM input layer by effective rank
"""
PHASE_2 = """
train:
  phase: 2
gmm:
  online: true
  num_clusters: 500
init_weights: runs/sjepa_base/train/weights/best.pt
"""
IMPORTANT_KEYS = """
train:
  epochs: 10
  batch_size: 8
  grad_accum: 4 # effective batch = batch_size x grad_accum
  phase: 1 # 1 = MFCC GMM, 2 = online encoder GMM
  use_visible_loss: true # add the visible-frame KL (Phase 1 / early Phase 2)
  phase2_start_epoch: -1 # epoch to switch to Phase 2 in one run (-1 = off)
  masked_only_epoch: -1 # epoch to drop visible loss + augmentation (-1 = off)
gmm:
  num_clusters: 100 # K in Phase 1
  num_clusters_phase2: 500 # K after the in-run Phase 2 transition
  online: false # true to start a run directly in Phase 2
  ema_layer: 2 # initial encoder layer used by the online GMM
  auto_layer: true # pick the layer by effective rank
  erank_decay: 0.9 # smoothing of the per-check effective-rank score
scheduler:
  kind: cosine # cosine | constant
  warmup_steps: 5000
  min_ratio: 0.1 # LR floor (fraction of peak); keep > 0 for Phase 2
  rewarm_on_phase2: true # warm-restart the LR at phase2_start_epoch
best:
  metric: kl # which metric chooses best.pt (kl, top1, entropy_bits)
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "snippet.yaml"
        path.write_text(text)
        return path

    return write


def test_two_phases_of_a_tiny_model_switch_at_50_and_75(written):
    """The third layer, which a tiny model does not have, gives way to the top one."""
    config = load_config(written(TWO_PHASES), ["model.size=tiny", "train.epochs=100", "optimizer.lr=1e-3"])
    first, second, third = plan(config, 1).stages
    assert [(stage.start_step, stage.num_clusters) for stage in (first, second, third)] == [
        (0, 100),
        (50, 500),
        (75, 500),
    ]
    assert (third.visible_loss, third.augment) == (False, False)
    assert config.gmm.ema_layer == 1
    assert load_config(written(TWO_PHASES), ["train.epochs=100"]).gmm.ema_layer == 2  # of six


def test_phase_2_warms_up_to_the_peak_again(written):
    config = load_config(written(TWO_PHASES), ["train.epochs=100", "scheduler.warmup_steps=5", "optimizer.lr=1e-3"])
    schedule = plan(config, 10)
    rates = [schedule.rate(step) for step in range(1000)]
    assert max(rates[:500]) == max(rates[500:]) == pytest.approx(1e-3)
    assert rates[499] == pytest.approx(1e-4)  # min_ratio
    assert rates[500] == pytest.approx(1e-3 / 5)
    fresh = plan(load_config(written(PHASE_2), ["optimizer.lr=1e-3", "scheduler.warmup_steps=5"]), 10)
    assert max(fresh.rate(step) for step in range(100)) == pytest.approx(1e-3)
    quarter = load_config(ROOT / "gpu/configs/train_twophase.yaml")
    assert quarter.scheduler.phase2_lr_ratio == 0.25


@pytest.mark.slow
def test_both_runs_train(written, corpus, tmp_path, monkeypatch):
    """On the generated corpus, a small model, fewer components and epochs; the second starts from
    the first one's weights."""
    monkeypatch.chdir(tmp_path)
    shorter = [
        *SMALL[2:], "model.size=tiny", f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}",
        "dataset.max_seconds=4", "dataset.num_workers=0", "gmm.fit_frames=600", "gmm.em_iters=2", "scheduler.warmup_steps=0.1",
        "train.precision=fp32",
    ]  # fmt: skip
    one_run = ["train.epochs=3", "train.phase2_start_epoch=1", "train.masked_only_epoch=2", "gmm.num_clusters=8"]
    config = load_config(written(TWO_PHASES), [*shorter, *one_run, "gmm.num_clusters_phase2=12"])
    assert train(SYSTEMS["s-jepa"], config) == 0
    best = load_weights("runs/sjepa_base/train/weights/best.pt")
    assert (best.stage["phase"], best.gmm.num_components, best.target_layer in (0, 1)) == (2, 12, True)
    config = load_config(written(PHASE_2), [*shorter, "train.epochs=1", "gmm.num_clusters=12"])
    assert train(SYSTEMS["s-jepa"], config) == 0
    assert load_weights("runs/sjepa_base/train2/weights/last.pt").stage["phase"] == 2


def test_the_list_of_important_keys_gives_the_defaults(written):
    assert load_config(written(IMPORTANT_KEYS)) == load_config(None)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["train.yaml", "train_twophase.yaml"])
def test_every_important_key_stands_in_the_configurations_with_a_comment(kind, name):
    text = (ROOT / kind / "configs" / name).read_text()
    values = yaml.safe_load(text)
    for section, keys in yaml.safe_load(IMPORTANT_KEYS).items():
        for key in keys:
            assert key in values[section], f"{section}.{key}"
            (line,) = [
                line for line in text.splitlines() if line.strip().startswith((f"{key}:", f"{section}: {{{key}:"))
            ]
            assert "#" in line, line
