"""Runs through both phases: the switches, what they leave behind, and stopping anywhere."""

import csv
import json
import zipfile
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from sjepa.core.errors import UserError
from sjepa.core.learner import Learner
from sjepa.entrypoints.evaluate import evaluate_weights
from sjepa.s_jepa.fitting import TrainingFrames
from sjepa.s_jepa.masked_prediction import SJEPATask
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.weights import load_weights
from sjepa.training.trainer import Trainer
from tests.support.runs import LOG_MEL, TWO_PHASES, assert_same_run, history, run, stopping_after

pytestmark = pytest.mark.slow


def parameters(part):
    return {name: value for name, value in part.items() if isinstance(value, torch.Tensor)}


def test_one_run_goes_through_both_phases(two_phases):
    rows = history(two_phases)
    assert [row["phase"] for row in rows] == ["1", "2", "2", "2"]
    assert rows[0]["active_layer"] == ""
    assert rows[1]["active_layer"] in ("0", "1")
    assert rows[0]["layer_score_0"] == ""
    assert float(rows[3]["layer_score_1"]) > 1
    rates = [float(row["lr"]) for row in rows]  # at the end of each epoch
    assert rates[1] > 5 * rates[0]  # warmed up again
    assert rates[3] == pytest.approx(rates[0], rel=0.01)  # both phases end at min_ratio
    for name in ("weights/best.pt", "weights/best_phase1.pt", "gmm.pt", "gmm_phase2.pt"):
        assert (two_phases / name).exists(), name


def test_the_best_of_both_phases_is_kept_and_says_where_it_comes_from(two_phases):
    first, second = (load_weights(two_phases / "weights" / name) for name in ("best_phase1.pt", "best.pt"))
    assert (first.stage["phase"], first.gmm.features, first.gmm.num_components) == (1, "mfcc39", 8)
    assert (first.target_encoder, first.target_layer) == (None, None)
    assert (second.stage["phase"], second.gmm.features, second.gmm.num_components) == (2, "encoder32", 12)
    assert second.target_layer in (0, 1)
    assert second.model.head.layers[-1].out_features == 12
    online, average = (module.state_dict() for module in (second.model.encoder, second.target_encoder))
    assert online.keys() == average.keys()
    assert not all(torch.equal(online[name], average[name]) for name in online)


@pytest.mark.parametrize("name", ["best.pt", "best_phase1.pt"])
def test_evaluation_of_either_phase_needs_nothing_but_the_weights(corpus, two_phases, tmp_path, name):
    config = load_config(None, [f"init_weights={two_phases / 'weights' / name}", f"dataset.test_path={corpus / 'test.zip'}",
                                f"runs_root={tmp_path}", "run_name=r", "dataset.num_workers=0", "train.precision=fp32",
                                "train.batch_size=4"])  # fmt: skip
    assert evaluate_weights(config) == 0
    results = (tmp_path / "r/eval/results.csv").read_text()
    assert results.startswith((two_phases / "results.csv").read_text()) == (name == "best.pt")


@pytest.mark.parametrize("stop_after", [2, 3, 4, 5, 7, 8, 9, 11, 12])
def test_a_run_stopped_anywhere_goes_on_to_the_same_end(corpus, two_phases, tmp_path, stop_after):
    """Around the switch (3), a layer check (5), the switch to masked-only inside an epoch (8), the
    very end (12)."""
    with stopping_after(stop_after):
        assert run(corpus, tmp_path, *TWO_PHASES) == 128 + 15
    workers = stop_after % 3
    assert run(corpus, tmp_path, *TWO_PHASES, "checkpoint.resume=true", f"dataset.num_workers={workers}") == 0
    assert_same_run(two_phases, tmp_path / "r" / "train")
    for name in ("best.pt", "best_phase1.pt", "last.pt"):
        a, b = (
            torch.load(folder / "weights" / name, weights_only=True) for folder in (two_phases, tmp_path / "r/train")
        )
        for part in ("model", "target_encoder"):
            if a[part] is not None:
                assert all(torch.equal(a[part][key], b[part][key]) for key in a[part]), (name, part)
        assert all(
            torch.equal(a["gmm"]["parameters"][key], b["gmm"]["parameters"][key]) for key in a["gmm"]["parameters"]
        )
        assert (a["stage"], a["target_layer"]) == (b["stage"], b["target_layer"])


def test_only_the_head_is_new_after_the_switch_and_all_other_moments_are_kept(corpus, tmp_path, monkeypatch):
    seen = {}
    original = Learner.rebuild

    def watch(self, change, *, forget):
        weights = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        moments = {
            name: self.optimizer.state[value]["exp_avg"].clone() for name, value in self.network.named_parameters()
        }
        original(self, change, forget=forget)
        for name, value in self.network.named_parameters():
            if name.startswith("head."):
                assert value not in self.optimizer.state
                seen.setdefault("head", []).append(value.shape)
                continue
            assert torch.equal(value, weights[name])
            assert torch.equal(self.optimizer.state[value]["exp_avg"], moments[name])
            seen["kept"] = seen.get("kept", 0) + 1

    monkeypatch.setattr(Learner, "rebuild", watch)
    assert run(corpus, tmp_path, *TWO_PHASES) == 0
    assert seen["head"][-1] == (12,)
    assert seen["kept"] > 30


def test_the_targets_of_phase_2_start_from_the_encoder_at_the_switch(corpus, tmp_path, monkeypatch):
    from sjepa.s_jepa.target_maker import TargetMaker

    original, checked = TargetMaker.fitted, []

    def watch(self, stage, network, **more):
        targets = original(self, stage, network, **more)
        if stage.phase == 2:
            copied, source = targets.encoder.average.state_dict(), network.encoder.state_dict()
            assert all(torch.equal(copied[name], source[name]) for name in source)
            assert (targets.layer, targets.gmm.num_components, stage.start_step) == (1, 12, 3)
            assert targets.gmm.weights.min() > 0
            checked.append(stage.name)
        return targets

    monkeypatch.setattr(TargetMaker, "fitted", watch)
    assert run(corpus, tmp_path, *TWO_PHASES) == 0
    assert checked == ["phase 2"]


def test_a_run_can_start_in_phase_2_from_the_weights_of_phase_1(corpus, two_phases, tmp_path, capsys):
    first = two_phases / "weights" / "best_phase1.pt"
    options = ["train.phase=2", "gmm.num_clusters=10", "gmm.ema_layer=1", "train.epochs=1", f"init_weights={first}"]
    assert run(corpus, tmp_path, *options) == 0
    assert "new: head (other targets, K 8 → 10)" in capsys.readouterr().out
    last = load_weights(tmp_path / "r/train/weights/last.pt")
    assert (last.stage["name"], last.gmm.num_components, last.target_layer) == ("phase 2", 10, 1)
    assert not (tmp_path / "r/train/weights/best_phase1.pt").exists()
    again = [*options, f"gmm.path={tmp_path / 'r/train/gmm.pt'}"]
    assert run(corpus, tmp_path, *again) == 0
    with pytest.raises(UserError, match=r"not 10 \(gmm.num_clusters\) over 32 \(encoder32\)"):
        run(corpus, tmp_path, *options, f"gmm.path={two_phases / 'gmm.pt'}")


def test_a_finished_run_of_two_phases_grows_without_moving_its_switch(corpus, tmp_path, capsys):
    options = [
        "scheduler.kind=constant",
        "train.phase2_start_epoch=0.5",
        "gmm.num_clusters_phase2=12",
        "gmm.ema_layer=0",
    ]
    assert run(corpus, tmp_path, *options) == 0
    capsys.readouterr()
    assert run(corpus, tmp_path, *options, "train.epochs=4", "checkpoint.resume=true") == 0
    assert [row["phase"] for row in history(tmp_path / "r/train")] == ["1", "2", "2", "2"]
    assert "0–3 " in capsys.readouterr().out


def test_the_mixture_can_be_fitted_anew_when_the_layer_changes(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sjepa.s_jepa.fitting.effective_rank", lambda features: next(ranks))
    plain, refitted = [], []
    for kept, extra in ((plain, []), (refitted, ["gmm.refit_on_switch=true"])):
        ranks = iter([1.0, 2.0] + [2.0, 1.0] * 99)
        assert run(corpus, tmp_path, *TWO_PHASES, *extra, "gmm.ema_layer=0", "gmm.erank_decay=0.0") == 0
        kept.append(capsys.readouterr().out)
    assert plain[0].count("targets come from layer") == refitted[0].count("targets come from layer") == 2
    assert plain[0].count("GMM: 12 components") == 1
    assert refitted[0].count("GMM: 12 components") == 3


def test_a_phase_that_ends_inside_an_epoch_leaves_its_weights(corpus, tmp_path):
    assert (
        run(
            corpus,
            tmp_path,
            "train.epochs=1",
            "train.phase2_start_step=2",
            "gmm.ema_layer=0",
            "gmm.num_clusters_phase2=12",
        )
        == 0
    )
    first = load_weights(tmp_path / "r/train/weights/best_phase1.pt")
    assert (first.stage["phase"], first.progress["step"]) == (1, 2)
    assert [row["phase"] for row in history(tmp_path / "r/train")] == ["2"]


def test_a_stop_while_the_mixture_is_fitted_loses_nothing(corpus, two_phases, tmp_path, monkeypatch):
    trainers, gather = [], TrainingFrames.gather
    started = Trainer.run

    def remember(self):
        trainers.append(self)
        started(self)

    def signalled(self, batches, *rest):
        if trainers and trainers[0].clock.step == 3:
            trainers[0].stop_signal = 15
        return gather(self, batches, *rest)

    monkeypatch.setattr(Trainer, "run", remember)
    monkeypatch.setattr(TrainingFrames, "gather", signalled)
    assert run(corpus, tmp_path, *TWO_PHASES) == 128 + 15
    assert not (tmp_path / "r/train/gmm_phase2.pt").exists()
    assert not (tmp_path / "r/train/weights/best_phase1.pt").exists()
    monkeypatch.undo()
    assert run(corpus, tmp_path, *TWO_PHASES, "checkpoint.resume=true") == 0
    assert_same_run(two_phases, tmp_path / "r/train")


def test_too_few_frames_for_phase_2_are_said_before_phase_1(corpus, tmp_path):
    with pytest.raises(
        UserError, match=r"gmm.num_clusters_phase2: 700 components cannot be fitted on 600 frames \(gmm.fit_frames: 600"
    ):
        run(corpus, tmp_path, *TWO_PHASES, "gmm.num_clusters_phase2=700")
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").glob("train*"))


def test_a_resumed_run_needs_its_first_weights_no_more(corpus, two_phases, tmp_path):
    first = tmp_path / "first.pt"
    first.write_bytes((two_phases / "weights/best_phase1.pt").read_bytes())
    options = ["train.phase=2", "gmm.ema_layer=0", "scheduler.kind=constant", f"init_weights={first}"]
    assert run(corpus, tmp_path, *options, "train.epochs=1") == 0
    first.unlink()
    assert run(corpus, tmp_path, *options, "train.epochs=2", "checkpoint.resume=true") == 0


def test_an_update_that_is_left_out_moves_nothing(corpus, tmp_path, monkeypatch):
    """From update 5 on, inside phase 2, the encoder hears NaN; the last update that was made is
    number 4."""
    original, kept = SJEPATask.update, {}

    def poisoned(self, window, *, step, **more):
        if step == 5:
            kept.update({name: value.clone() for name, value in parameters(self.targets.state_dict()).items()})
        if step >= 5:
            window = [replace(batch, heard_BS=batch.heard_BS * float("nan")) for batch in window]
        return original(self, window, step=step, **more)

    monkeypatch.setattr(SJEPATask, "update", poisoned)
    assert run(corpus, tmp_path, *TWO_PHASES, "gmm.auto_layer=false", "train.masked_only_step=null") == 0
    last = load_weights(tmp_path / "r/train/weights/last.pt")
    assert kept
    for name, value in last.gmm.state_dict().items():
        assert torch.equal(value, kept[f"gmm.{name}"]), name
    for name, value in last.target_encoder.state_dict().items():
        assert torch.equal(value, kept[f"encoder.average.{name}"]), name


@pytest.mark.parametrize("stop", [3, 7, 11])
def test_a_log_mel_run_in_rounds_goes_on_exactly(corpus, tmp_path_factory, tmp_path, stop):
    """Statistics of the corpus, projection, temperature and held targets are all in the checkpoint;
    7 is a renewal."""
    whole = tmp_path_factory.getbasetemp() / "log_mel_whole"
    if not whole.exists():
        assert run(corpus, whole, *LOG_MEL) == 0
    with stopping_after(stop):
        assert run(corpus, tmp_path, *LOG_MEL) == 143
    assert run(corpus, tmp_path, *LOG_MEL, "checkpoint.resume=true") == 0
    assert_same_run(whole / "r" / "train", tmp_path / "r" / "train")
    weights = load_weights(whole / "r" / "train" / "weights" / "best.pt")
    assert weights.space.settings.dimensions == 6
    assert float(weights.space.temperature) > 1
    assert weights.model.encoder.feature_extractor.deviation_C.min() > 0.01


def test_the_projection_of_phase_2_follows_clusters_or_predictions(corpus, tmp_path):
    found = {}
    for kind in ("clusters", "predictions"):
        settings = [
            *LOG_MEL,
            f"gmm.projection_phase2={kind}",
            "train.max_steps=4",
            "train.masked_only_step=null",
            f"run_name={kind}",
        ]
        assert run(corpus, tmp_path, *settings) == 0
        weights = tmp_path / kind / "train/weights"
        found[kind] = [load_weights(weights / name).space.basis_CE for name in ("best_phase1.pt", "last.pt")]
    assert torch.equal(found["clusters"][0], found["predictions"][0])  # phase 1 always goes by clusters
    assert not torch.allclose(found["clusters"][1], found["predictions"][1], atol=1e-2)


@pytest.fixture
def manifest(corpus, tmp_path):
    """The training set as a folder and a manifest that says who speaks."""
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        archive.extractall(tmp_path / "audio")
    with (corpus / "labels.tsv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train"]
    path = tmp_path / "train.jsonl"
    path.write_text(
        "".join(json.dumps({"path": f"audio/{row['path']}", "speaker": row["speaker"]}) + "\n" for row in rows)
    )
    return path


def test_targets_by_speaker_go_through_both_phases_and_go_on_exactly(corpus, manifest, tmp_path):
    settings = [*LOG_MEL, "gmm.normalise=speaker", f"dataset.train_path={manifest}"]
    for root in (tmp_path / "whole", tmp_path / "stopped"):
        with nullcontext() if root.name == "whole" else stopping_after(7):
            assert run(corpus, root, *settings) == (0 if root.name == "whole" else 143)
    assert run(corpus, tmp_path / "stopped", *settings, "checkpoint.resume=true") == 0
    assert_same_run(tmp_path / "whole/r/train", tmp_path / "stopped/r/train")
    for name, source in (("best_phase1.pt", 39), ("best.pt", 32)):
        space = load_weights(tmp_path / "whole/r/train/weights" / name).space
        assert space.speaker_mean_SD.shape == (3, source)  # of four speakers one is in the test set
        assert space.speaker_deviation_SD.min() > 0


def test_the_best_of_both_phases_can_be_one_file(corpus, tmp_path):
    """pitch_match compares across phases: best.pt is of the epoch with the highest one, whichever
    phase that was in."""
    assert run(corpus, tmp_path, *TWO_PHASES, "best.metric=pitch_match") == 0
    folder = tmp_path / "r/train"
    match = [float(row["val_pitch_match"]) for row in history(folder)]
    assert load_weights(folder / "weights/best.pt").progress["epoch"] == match.index(max(match))
    assert load_weights(folder / "weights/best_phase1.pt").stage["phase"] == 1


def test_targets_by_speaker_need_somebody_to_say_who_speaks(corpus, tmp_path):
    with pytest.raises(UserError, match=r"gmm\.normalise: speaker needs a manifest with a field speaker"):
        run(corpus, tmp_path, "gmm.normalise=speaker")


def test_more_directions_than_features_or_components_are_refused(corpus, tmp_path):
    for key, value in (("dimensions", 39), ("dimensions_phase2", 12)):
        with pytest.raises(UserError, match=f"gmm.{key}: {value} directions are too many"):
            run(corpus, tmp_path, *TWO_PHASES, f"gmm.{key}={value}")
    assert not (tmp_path / "r" / "train").exists()
