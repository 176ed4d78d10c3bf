"""The engine trains a system that it does not know: loop, report, checkpoints and resuming."""

import csv

import pytest
import torch

from sjepa.config.load import load_config
from sjepa.entrypoints.resume import run_to_resume
from sjepa.entrypoints.train import train
from sjepa.reporting.console import Console
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.trainer import STATE
from tests.support.runs import history, stopping_after
from tests.support.toy_system import OFFSET, RENEWED, ToySystem

TOY = ToySystem()


def configured(corpus, root, *overrides):
    values = [
        f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}", f"runs_root={root}",
        "dataset.sample_rate=8000", "dataset.num_workers=0", "run_name=toy", "train.epochs=4", "train.batch_size=4",
        "train.grad_accum=2", "train.precision=fp32", "train.log_every=1", *overrides,
    ]  # fmt: skip
    return load_config(TOY.schema, None, values)


def states(root):
    return Checkpoints.read(sorted((root / "toy/train/checkpoints").glob("*.pth"))[-1], {*STATE, *TOY.state})


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    assert train(TOY, configured(corpus, root)) == 0
    return root


def test_it_is_trained_reported_and_kept(whole):
    folder = whole / "toy/train"
    rows = history(folder)
    assert [row["phase"] for row in rows] == ["1", "2", "2", "2"]
    assert float(rows[-1]["train_error"]) - OFFSET < 0.8 * float(rows[0]["train_error"])
    assert float(rows[-1]["val_told_apart"]) < float(rows[0]["val_told_apart"])
    assert [row["renewed"] for row in rows] == ["False", "False", "True", "True"]
    with (folder / "results.csv").open(newline="") as file:
        assert next(row for row in csv.DictReader(file))["metric"] == "bytes"
    assert {path.name for path in (folder / "plotes").iterdir()} >= {"history_error.jpg", "history_val_told_apart.jpg"}
    assert (folder / "weights/last.pt").exists()
    (log,) = (folder / "logs").iterdir()
    assert "4 epochs in the history" in log.read_text()


def test_only_the_networks_of_a_stage_are_updated(corpus, tmp_path):
    with stopping_after(3):  # the first stage
        train(TOY, configured(corpus, tmp_path))
    assert not states(tmp_path)["critic_optimizer"]["state"]
    assert states(tmp_path)["generator_optimizer"]["state"]


def test_the_best_is_chosen_anew_once_figures_are_no_longer_comparable(whole):
    """The error of every later epoch is larger by OFFSET."""
    rows, best = history(whole / "toy/train"), states(whole)["best"]
    assert 6 < RENEWED < 9  # in the third epoch, of the same phase as the second
    later = {int(row["epoch"]): float(row["val_error"]) for row in rows[2:]}
    assert (best["epoch"], best["value"]) == (min(later, key=later.get), pytest.approx(min(later.values())))


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(corpus, tmp_path, whole, step):
    with stopping_after(step):
        assert train(TOY, configured(corpus, tmp_path)) == 143
    assert train(TOY, configured(corpus, tmp_path, "checkpoint.resume=true")) == 0
    ended, expected = states(tmp_path), states(whole)
    for name in ("generator", "critic"):
        for key, value in expected[name].items():
            assert torch.equal(ended[name][key], value), (name, key)
    timing = ("seconds", "data_waiting")
    rows, own = ([{k: v for k, v in row.items() if k not in timing} for row in history(root / "toy/train")] for root in (whole, tmp_path))  # fmt: skip
    assert rows == own


def test_memory_is_probed_without_a_trace(corpus, tmp_path, whole):
    assert train(TOY, configured(corpus, tmp_path, "train.probe_memory=true")) == 0
    for name, value in states(whole)["critic"].items():
        assert torch.equal(states(tmp_path)["critic"][name], value)


def test_checkpoints_of_another_system_are_passed_over(whole, corpus, capsys):
    class Other(ToySystem):
        state = (*TOY.state, "bank")

    assert run_to_resume(Other(), configured(corpus, whole), Console(quiet=False)) is None
    assert "incomplete, without bank" in capsys.readouterr().out
