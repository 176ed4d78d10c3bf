"""Epoch time under CPU contention against an idle machine, and on an idle machine against OpenMP's
default wait policy.

Phase 1 of `cpu/configs/train_twophase.yaml`, 120 generated clips, median of three.
"""

from __future__ import annotations

import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.table import Row, report
from sjepa.dataset.demo import write_corpus

_MOST_BESIDE_TWO, _MOST_ALONE = 2.5, 1.03
_AS_IT_WAS = {"KMP_LIBRARY": "throughput"}  # a user setting, which disables ours; ignored by GNU OpenMP
_CONFIG = Path(__file__).parents[1] / "cpu/configs/train_twophase.yaml"


@contextlib.contextmanager
def _busy(programs: int) -> Iterator[None]:
    """Runs `programs` busy-looping processes in the background."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def _epoch(folder: Path, **environment: str) -> float:
    """Seconds of one epoch, from history.csv."""
    command = [
        str(Path(sys.executable).parent / "trainsjepa"), "-c", str(_CONFIG), f"dataset.train_path={folder / 'train.zip'}",
        f"dataset.test_path={folder / 'test.zip'}", "dataset.max_train_samples=120", "dataset.max_test_samples=20",
        "train.epochs=1", "train.phase2_start_epoch=-1", "dataset.num_workers=0", f"runs_root={folder / 'runs'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    newest = max((folder / "runs").glob("*/*/history.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open(newline="") as file:
        return float(next(csv.DictReader(file))["seconds"])


def measure(*, rounds: int = 3) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, speakers=16, clips=12)
        found: dict[str, list[float]] = {"as it was": [], "alone": [], "beside one": [], "beside two": []}
        for _ in range(rounds):
            found["as it was"].append(_epoch(folder, **_AS_IT_WAS))
            for programs, case in enumerate(("alone", "beside one", "beside two")):
                with _busy(programs):
                    found[case].append(_epoch(folder))
    seconds = {case: statistics.median(values) for case, values in found.items()}
    alone, before = seconds["alone"], seconds["as it was"]
    return [
        Row.value("alone", alone, before, alone / before, _MOST_ALONE),
        *(
            Row.value(case, seconds[case], alone, seconds[case] / alone, _MOST_BESIDE_TWO)
            for case in ("beside one", "beside two")
        ),
    ]


if __name__ == "__main__":
    report(measure, __doc__, quick=partial(measure, rounds=1))
