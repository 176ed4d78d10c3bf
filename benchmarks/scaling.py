"""Data-parallel scaling: two single-thread processes against one (base, phase 1, 40 s of audio per
update of generated clips). `ours` and `baseline` are seconds per second of audio; `ratio` is the
scaling efficiency: speedup ÷ 2. The second row exchanges gradients in bf16; with --quick 16 s of
audio per update, and it alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.table import Row, report
from sjepa.dataset.demo import write_corpus

_EPOCHS = 2  # the first is warm-up


def seconds_per_audio_second(folder: Path, processes: int, clips: int, *overrides: str) -> float:
    """Training time per second of audio, without validation."""
    name = "_".join([f"p{processes}", *overrides])
    subprocess.run(
        [
            Path(sys.executable).with_name("trainsjepa"),
            f"dataset.train_path={folder / 'train.zip'}", f"dataset.test_path={folder / 'test.zip'}",
            f"runs_root={folder}", f"run_name={name}", f"train.devices={processes}", "dataset.num_workers=0",
            f"train.batch_size={clips}", f"train.grad_accum={2 // processes}", f"train.epochs={_EPOCHS}",
            "gmm.fit_frames=5000", "dataset.max_test_samples=4", "dataset.val_prob=1.0", "dataset.augment.enabled=false",
            *overrides,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with (folder / name / "train/history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    audio = 3600 * (float(rows[-1]["audio_hours"]) - float(rows[0]["audio_hours"]))
    return sum(float(row["seconds"]) for row in rows[1:]) / audio


def measure(*, quick: bool = False) -> list[Row]:
    clips = 4 if quick else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, speakers=8, clips=6 if quick else 13)
        one = seconds_per_audio_second(folder, 1, clips)
        forms = {"two_processes": [], "two_processes_bf16": ["train.gradient_exchange=bf16"]}
        rows = []
        for label, overrides in list(forms.items())[quick:]:
            two = seconds_per_audio_second(folder, 2, clips, *overrides)
            rows.append(Row(label, two, one, one / two / 2, 0.85, one / two / 2 >= 0.85))
        return rows


if __name__ == "__main__":
    report(measure, __doc__, quick=partial(measure, quick=True))
