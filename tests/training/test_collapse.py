"""The alarm: it sounds within one epoch of a collapse, and never in a healthy run."""

import numpy as np
import pytest
import soundfile
import torch

from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.s_jepa.collapse import collapse_signs
from sjepa.s_jepa.metrics import Metrics
from sjepa.training.health import CollapseAlarm, RunStopped
from tests.support.runs import TWO_PHASES, history, run


def metrics(**values):
    healthy = {
        "loss": 2.0,
        "kl": 2.0,
        "top1": 0.2,
        "entropy_bits": 4.0,
        "target_entropy_bits": 0.8,
        "clusters_used": 60.0,
        "frames": 5000,
    }
    return Metrics(**(healthy | values))


def test_a_healthy_epoch_has_no_signs():
    assert collapse_signs(metrics(), 100, spreads=(0.5, 0.3), effective_ranks=(12.0, 5.0)) == []
    assert collapse_signs(metrics(entropy_bits=6.6, clusters_used=95.0), 100) == []  # predictions at the very start


@pytest.mark.parametrize(
    ("values", "layers", "text"),
    [
        ({"clusters_used": 1.02, "target_entropy_bits": 0.01}, {}, "tell frames apart by 0.02 bits"),
        ({"clusters_used": 99.0, "target_entropy_bits": 6.6}, {}, "tell frames apart by 0.03 bits"),  # constant input
        ({"entropy_bits": 0.01}, {}, "certain everywhere"),
        ({}, {"spreads": (0.4, 0.001)}, "spread 0.001 in layer 1"),
        ({}, {"effective_ranks": (1.31, 9.0, 1.05)}, "effective rank 1.3 in layer 0, 1.1 in layer 2"),
    ],
)
def test_each_kind_of_collapse_is_named(values, layers, text):
    (sign,) = collapse_signs(metrics(**values), 100, **layers)
    assert text in sign


def test_the_alarm_warns_once_an_epoch_or_stops():
    class Listener:
        def __init__(self):
            self.heard = []

        def warn(self, text):
            self.heard.append(text)

    listener, alarm = Listener(), CollapseAlarm("warn")
    for epoch in (0, 0, 1):
        alarm.check(["the targets say nothing"], epoch, listener)
    alarm.check([], 2, listener)
    assert len(listener.heard) == 2
    with pytest.raises(RunStopped, match="collapse: the targets say nothing"):
        CollapseAlarm("stop").check(["the targets say nothing"], 0, listener)


@pytest.fixture(scope="module")
def silence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("silence")
    for name in ("train", "test"):
        (folder / name).mkdir()
        for clip in range(6):
            soundfile.write(folder / name / f"{clip}.wav", np.zeros(16000 + 1600 * clip, dtype=np.float32), 16000)
    return [f"dataset.train_path={folder / 'train'}", f"dataset.test_path={folder / 'test'}"]


@pytest.mark.slow
def test_constant_input_raises_the_alarm_within_one_epoch(corpus, silence, tmp_path, capsys):
    assert run(corpus, tmp_path, *silence, "train.epochs=1") == 0
    assert "collapse: the targets tell frames apart by 0.00 bits" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("phases", [[], TWO_PHASES])
def test_one_live_component_stops_the_run_within_one_epoch_if_asked(corpus, tmp_path, phases):
    gmm = DiagonalGMM(8, 39, features="mfcc39")
    weights = torch.full((8,), 1e-9)
    weights[0] = 1.0
    gmm.set_parameters(weights, torch.zeros(8, 39), 400 * torch.ones(8, 39))
    gmm.save(tmp_path / "one.pt")
    with pytest.raises(RunStopped, match=r"of 8 components in use"):
        run(
            corpus,
            tmp_path,
            *phases,
            f"gmm.path={tmp_path / 'one.pt'}",
            "health.on_collapse=stop",
            "train.log_every=1000",
        )
    assert len(history(tmp_path / "r/train")) == 1
    assert list((tmp_path / "r/train/checkpoints").glob("*.pth"))


@pytest.mark.slow
def test_a_healthy_run_of_both_phases_stays_silent(corpus, tmp_path, capsys):
    assert run(corpus, tmp_path, *TWO_PHASES, "health.on_collapse=stop") == 0
    assert "collapse" not in capsys.readouterr().out
    rows = history(tmp_path / "r/train")
    assert len(rows) == 4
    for row in rows:
        assert float(row["spread_0"]) > 0.05
        assert 0.05 < float(row["spread_1"]) <= 1
        assert 0 < float(row["gradient_norm"]) < np.inf
        assert 0 < float(row["val_target_entropy_bits"]) < np.log2(12)
        assert 1 < float(row["clusters_used"]) <= 12
        assert 0 <= int(row["reseeded"]) <= 12 * 9  # of 12 components, in 9 updates
