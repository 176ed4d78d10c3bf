"""Data-parallel scaling: two single-thread processes against one (base, phase 1, micro-batches of 4
generated clips). `ours` and `baseline` are seconds per second of audio; `ratio` is the scaling
efficiency: speedup ÷ 2."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, report
from sjepa.dataset.demo import write_corpus

_EPOCHS = 2  # the first is warm-up


def seconds_per_audio_second(folder: Path, processes: int) -> float:
    """Training time per second of audio, without validation."""
    name = f"p{processes}"
    subprocess.run(
        [
            Path(sys.executable).with_name("trainsjepa"),
            f"dataset.train_path={folder / 'train.zip'}", f"dataset.test_path={folder / 'test.zip'}",
            f"runs_root={folder}", f"run_name={name}", f"train.devices={processes}", "dataset.num_workers=0",
            "train.batch_size=4", "train.grad_accum=1", f"train.epochs={_EPOCHS}", "gmm.fit_frames=5000",
            "dataset.max_test_samples=4", "dataset.val_prob=1.0", "dataset.augment.enabled=false",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with (folder / name / "train/history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    audio = 3600 * (float(rows[-1]["audio_hours"]) - float(rows[0]["audio_hours"]))
    return sum(float(row["seconds"]) for row in rows[1:]) / audio


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, speakers=8, clips=16)
        one, two = (seconds_per_audio_second(folder, processes) for processes in (1, 2))
    return [Row("two_processes", two, one, one / two / 2, 0.8, one / two / 2 >= 0.8)]


if __name__ == "__main__":
    report(measure, __doc__)
