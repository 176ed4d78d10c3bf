"""The report for a machine with a GPU, here of the CPU against itself: every part runs."""

import json

import pytest

from benchmarks import gpu_check
from benchmarks.table import Row

QUICK = ["parity", "mixture", "resume", "speed"]


@pytest.mark.slow
def test_all_checks_hold_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", "--parts", *QUICK])
    assert gpu_check.main() == 0
    told = capsys.readouterr().out
    record = json.loads(told.splitlines()[-1])
    names = [row["name"] for row in record["rows"]]
    for expected in ("gradient, waveform 1, bf16", "features, logmel 2, fp32", "mel frontend", "mixture posteriors",
                     "20 updates, resumed"):  # fmt: skip
        assert expected in names
    assert all(row["met"] for row in record["rows"])
    assert "phase 2, fp32: " in told


@pytest.mark.slow
def test_runs_that_end_well_and_that_fail_are_told_apart():
    short = ("train.epochs=1", "train.phase2_start_epoch=-1")
    with gpu_check.corpus() as folder:
        ended, said = gpu_check.trained(folder, "cpu", "plain", *short)
        assert ended, said
        ended, said = gpu_check.trained(folder, "cpu", "wrong", "train.strategy=none")
    assert not ended
    assert "strategy" in said


def test_a_part_that_fails_is_said_and_the_others_are_made(monkeypatch, capsys):
    def broken(device):
        raise RuntimeError("no such kernel")
        yield

    monkeypatch.setattr(gpu_check, "parity", broken)
    monkeypatch.setattr(gpu_check, "mixture", lambda device, frames: iter([Row.value("mixture", 0.0, 1.0, 0.0, 1.0)]))
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", "--parts", "parity", "mixture"])
    assert gpu_check.main() == 1
    told = capsys.readouterr().out
    assert "parity: RuntimeError: no such kernel" in told
    assert [(row["name"], row["met"]) for row in json.loads(told.splitlines()[-1])["rows"]] == [
        ("parity", False), ("mixture", True),
    ]  # fmt: skip
