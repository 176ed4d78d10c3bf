"""Whole runs on the generated corpus, in this process."""

import csv

import numpy as np
import pytest
import soundfile
import torch
import yaml

from sjepa.core.errors import UserError
from sjepa.entrypoints.evaluate import evaluate_weights
from sjepa.entrypoints.resume import differences
from sjepa.entrypoints.systems import SYSTEMS
from sjepa.entrypoints.train import train
from sjepa.s_jepa import validation
from sjepa.s_jepa.masked_prediction import SJEPATask
from sjepa.s_jepa.schema import load_config
from sjepa.training.trainer import Trainer
from tests.support.audio import tone
from tests.support.runs import assert_same_run, history, run, stopping_after

pytestmark = pytest.mark.slow


def test_every_file_of_the_run_folder_is_there_and_right(finished):
    expected = {"config_used.yaml", "data.json", "history.csv", "gmm.pt", "results.csv", "weights/best.pt", "weights/last.pt",
                "checkpoints/epoch_000.pth", "checkpoints/epoch_001.pth"}  # fmt: skip
    expected |= {
        f"plotes/history_{name}.jpg"
        for name in (
            "kl",
            "top1",
            "entropy_bits",
            "loss",
            "lr",
            "erank",
            "spread",
            "clusters_used",
            "gradient_norm",
            "val_pitch_match",
        )
    }
    found = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    logs = {name for name in found if name.startswith("logs/train_") and name.endswith(".log")}
    assert found - logs == expected
    assert len(logs) == 1
    rows = history(finished)
    assert list(rows[0])[:11] == ["epoch", "phase", "lr", "train_loss", "val_loss", "train_kl", "val_kl", "train_top1",
                                  "val_top1", "train_entropy_bits", "val_entropy_bits"]  # fmt: skip
    assert list(rows[0])[11:17] == ["clusters_used", "active_layer", "erank_0", "erank_1", "seconds", "audio_hours"]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[1]["audio_hours"]) == pytest.approx(2 * float(rows[0]["audio_hours"]), rel=1e-6)
    assert float(rows[1]["val_kl"]) < float(rows[0]["val_kl"])
    for picture in finished.glob("plotes/*.jpg"):
        assert picture.read_bytes()[:3] == b"\xff\xd8\xff"


def test_the_configuration_that_was_used_makes_the_same_run_again(finished, tmp_path):
    values = yaml.safe_load((finished / "config_used.yaml").read_text())
    values["runs_root"] = str(tmp_path)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
    assert train(SYSTEMS["s-jepa"], load_config(tmp_path / "again.yaml")) == 0
    assert_same_run(finished, tmp_path / "r" / "train")


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(corpus, finished, tmp_path, workers):
    assert run(corpus, tmp_path, f"dataset.num_workers={workers}") == 0
    assert_same_run(finished, tmp_path / "r" / "train")


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_end(corpus, finished, tmp_path, stop_after):
    """Three updates make an epoch: inside the first, at its end, inside the second, at the very
    end."""
    with stopping_after(stop_after):
        assert run(corpus, tmp_path) == 128 + 15
    assert run(corpus, tmp_path, "checkpoint.resume=true") == 0
    assert [path.name for path in (tmp_path / "r").glob("train*")] == ["train"]
    assert_same_run(finished, tmp_path / "r" / "train")


def test_a_stop_during_validation_waits_for_nothing(corpus, tmp_path, monkeypatch):
    running, started, original = [], Trainer.run, validation.choose_frames

    def remember(self):
        running.append(self)
        started(self)

    def signalled(*arguments, **more):
        running[0].stop_signal = 15
        return original(*arguments, **more)

    monkeypatch.setattr(Trainer, "run", remember)
    monkeypatch.setattr(validation, "choose_frames", signalled)
    assert run(corpus, tmp_path, "train.batch_size=1", "train.grad_accum=8") == 128 + 15
    assert not (tmp_path / "r/train/history.csv").exists()
    monkeypatch.undo()
    assert run(corpus, tmp_path, "train.batch_size=1", "train.grad_accum=8", "checkpoint.resume=true") == 0
    whole = tmp_path / "whole"
    assert run(corpus, whole, "train.batch_size=1", "train.grad_accum=8") == 0
    assert_same_run(whole / "r/train", tmp_path / "r/train")


def test_more_epochs_continue_a_finished_run_and_other_changes_are_refused(corpus, tmp_path):
    assert run(corpus, tmp_path, "train.epochs=1", "scheduler.kind=constant") == 0
    with pytest.raises(UserError, match=r"optimizer.lr: 0.002 → 0.5"):
        run(corpus, tmp_path, "checkpoint.resume=true", "optimizer.lr=0.5", "scheduler.kind=constant")
    assert run(corpus, tmp_path, "checkpoint.resume=true", "train.epochs=2", "scheduler.kind=constant") == 0
    assert len(history(tmp_path / "r" / "train")) == 2


def test_more_steps_go_on_inside_the_epoch(corpus, tmp_path):
    constant = "scheduler.kind=constant"
    assert run(corpus, tmp_path / "a", constant, "scheduler.warmup_steps=2", "train.max_steps=5") == 0
    for steps in (2, 5):
        resume = ["checkpoint.resume=true", f"train.max_steps={steps}"]
        assert run(corpus, tmp_path / "b", constant, "scheduler.warmup_steps=2", *resume) == 0
    assert_same_run(tmp_path / "a/r/train", tmp_path / "b/r/train")


def test_a_run_does_not_go_on_with_other_data(corpus, tmp_path):
    assert run(corpus, tmp_path, "train.max_steps=1") == 0
    config = tmp_path / "r/train/config_used.yaml"
    config.write_text(config.read_text().replace("train.zip", "test.zip"))
    with pytest.raises(UserError, match="the training set is not the one"):
        run(corpus, tmp_path, "checkpoint.resume=true", f"dataset.train_path={corpus / 'test.zip'}")


def test_runs_that_share_a_checkpoint_folder_do_not_touch_each_other(corpus, tmp_path):
    shared = [f"checkpoint.dir={tmp_path / 'shared'}", "checkpoint.max_checkpoint=1"]
    assert run(corpus, tmp_path, *shared) == 0
    assert run(corpus, tmp_path, *shared, "train.epochs=1") == 0
    found = sorted(str(path.relative_to(tmp_path / "shared")) for path in (tmp_path / "shared").rglob("*.pth"))
    assert found == ["r/train/epoch_001.pth", "r/train2/epoch_000.pth"]


def test_a_damaged_checkpoint_is_passed_over(corpus, finished, tmp_path, capsys):
    assert run(corpus, tmp_path) == 0
    newest = tmp_path / "r" / "train" / "checkpoints" / "epoch_001.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run(corpus, tmp_path, "checkpoint.resume=true") == 0
    assert "ignored: " in capsys.readouterr().out
    assert_same_run(finished, tmp_path / "r" / "train")


def test_new_runs_get_folders_of_their_own(corpus, tmp_path):
    for _ in range(2):
        assert run(corpus, tmp_path, "train.max_steps=1") == 0
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["train", "train2"]


def test_a_fitted_mixture_can_be_used_again(corpus, finished, tmp_path):
    assert run(corpus, tmp_path, f"gmm.path={finished / 'gmm.pt'}") == 0
    assert_same_run(finished, tmp_path / "r" / "train")
    with pytest.raises(UserError, match=r"gmm.path: .* has 8 components"):
        run(corpus, tmp_path, f"gmm.path={finished / 'gmm.pt'}", "gmm.num_clusters=9")


def test_a_run_can_start_from_weights(corpus, finished, tmp_path, capsys):
    best = finished / "weights" / "best.pt"
    assert (
        run(corpus, tmp_path, f"init_weights={best}", "gmm.num_clusters=5", "train.max_steps=1", "optimizer.lr=1e-12")
        == 0
    )
    assert "new: head (other targets, K 8 → 5)" in capsys.readouterr().out
    before, after = (torch.load(p, weights_only=True)["model"] for p in (best, tmp_path / "r/train/weights/last.pt"))
    name = "encoder.feature_projection.projection.weight"
    assert torch.allclose(before[name], after[name], atol=1e-6)
    assert run(corpus, tmp_path, f"init_weights={best}", "train.max_steps=1", "model.overrides.dropout=0.3") == 0
    with pytest.raises(UserError, match="encoder of another shape"):
        run(corpus, tmp_path, f"init_weights={best}", "model.overrides.num_layers=1")


def test_evaluation_needs_nothing_but_the_weights(corpus, finished, tmp_path):
    code = evaluate_weights(load_config(None, [f"init_weights={finished / 'weights/best.pt'}", f"dataset.test_path={corpus / 'test.zip'}",
                                   f"runs_root={tmp_path}", "run_name=r", "dataset.num_workers=0", "train.precision=fp32", "train.batch_size=4"]))  # fmt: skip
    assert code == 0
    shown = (tmp_path / "r/eval/results.csv").read_text()
    assert shown.startswith((finished / "results.csv").read_text())  # and entropies and units after it
    assert shown.startswith("metric,value\nloss,")


def test_updates_that_are_never_finite_stop_the_run_with_a_saved_state(corpus, tmp_path, monkeypatch):
    original = SJEPATask.update
    monkeypatch.setattr(SJEPATask, "update", lambda *a, **k: original(*a, **k)._replace(finite=False))
    with pytest.raises(UserError, match="10 updates in a row"):
        run(corpus, tmp_path, "train.epochs=9")
    assert list((tmp_path / "r/train/checkpoints").glob("epoch_*_step_*.pth"))


def test_bf16_follows_fp32(corpus, finished, tmp_path):
    """After six updates the curves must still lie together; the 200-step comparison is a
    benchmark's."""
    assert run(corpus, tmp_path, "train.precision=bf16") == 0
    exact, rough = (
        np.array([float(row["train_loss"]) for row in history(path)]) for path in (finished, tmp_path / "r/train")
    )
    assert np.abs(rough / exact - 1).max() < 0.02
    assert (rough != exact).any()  # and it was another precision


def test_tensorboard_events_are_written_on_request(corpus, tmp_path):
    assert run(corpus, tmp_path, "train.max_steps=2", "logging.tensorboard=true") == 0
    assert list((tmp_path / "r/train/tensorboard").glob("events.*"))


def test_validation_does_not_depend_on_how_clips_are_batched(corpus, finished, tmp_path):
    figures = []
    for size in (1, 3):
        evaluate_weights(load_config(None, [
            f"init_weights={finished / 'weights/best.pt'}", f"dataset.test_path={corpus / 'test.zip'}", f"runs_root={tmp_path}",
            "run_name=r", "dataset.num_workers=0", "train.precision=fp32", f"train.batch_size={size}",
        ]))  # fmt: skip
        rows = dict(csv.reader((tmp_path / "r" / ("eval" if size == 1 else "eval2") / "results.csv").open()))
        figures.append([float(rows[name]) for name in ("loss", "kl", "top1", "entropy_bits", "frames")])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_changes_that_make_another_run_are_found():
    used = {
        "train": {"epochs": 1, "batch_size": 4},
        "model": {"overrides": {"dropout": 0.0}},
        "checkpoint": {"dir": None},
    }
    wanted = {"train": {"epochs": 2, "batch_size": 4}, "model": {"overrides": {}}, "checkpoint": {"dir": "x"}}
    assert differences(used, wanted) == ["model.overrides.dropout: 0.0 → None"]


def test_clips_that_only_validation_finds_unreadable_are_named(corpus, tmp_path, capsys):
    samples = tone(1.0)
    samples[8000] = np.nan
    data = tmp_path / "test"
    data.mkdir()
    soundfile.write(data / "bad.wav", samples, 16000, subtype="FLOAT")
    soundfile.write(data / "good.wav", tone(1.0), 16000)
    options = ["dataset.validate=header", "dataset.val_prob=1.0", "train.max_steps=1"]
    assert run(corpus, tmp_path, *options, f"dataset.test_path={data}") == 0
    assert "skipped test/bad.wav: samples that are not finite numbers" in capsys.readouterr().out
    (data / "good.wav").unlink()
    with pytest.raises(UserError, match="not one of the clips to measure on could be read"):
        run(corpus, tmp_path, *options, f"dataset.test_path={data}")


def test_diverged_weights_end_in_a_message_and_not_in_a_crash(corpus, tmp_path, capsys):
    assert run(corpus, tmp_path, "optimizer.lr=1e300", "train.epochs=1") == 0
    shown = capsys.readouterr().out
    assert "loss or gradient not finite, left out" in shown
    assert "so there is no best.pt; the last weights are evaluated" in shown
    assert "(no best.pt)" in shown


def test_a_damaged_history_is_told_in_one_line(corpus, tmp_path):
    assert run(corpus, tmp_path, "train.epochs=1", "scheduler.kind=constant") == 0
    history_file = tmp_path / "r/train/history.csv"
    for damage in (b"garbage\n1,2\n", bytes(range(256)), b"epoch,lr\nx,y\n"):
        history_file.write_bytes(damage)
        with pytest.raises(UserError, match=r"history.csv: damaged"):
            run(corpus, tmp_path, "scheduler.kind=constant", "checkpoint.resume=true")
    history_file.unlink()
    assert run(corpus, tmp_path, "scheduler.kind=constant", "checkpoint.resume=true") == 0


def test_a_mistake_in_weights_or_mixture_leaves_no_run_folder(corpus, tmp_path):
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    for key in ("init_weights", "gmm.path"):
        with pytest.raises(UserError, match=r"garbage\.pt: not a"):
            run(corpus, tmp_path, f"{key}={tmp_path / 'garbage.pt'}")
    with pytest.raises(UserError, match=r"checkpoint\.dir: .* is not a folder"):
        run(corpus, tmp_path, f"checkpoint.dir={tmp_path / 'garbage.pt'}")
    assert not (tmp_path / "r" / "train").exists()
