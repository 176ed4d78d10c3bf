"""Whole trainings with the shipped configurations: what the README promises of them."""

import csv
from pathlib import Path

import pytest

from benchmarks.learning import Corpus, encoded, frame_accuracy
from sjepa import load_encoder
from sjepa.dataset.demo import write_corpus
from sjepa.s_jepa.extractors import untrained
from sjepa.s_jepa.pretrained import PretrainedEncoder
from tests.support.commands import command

pytestmark = pytest.mark.slow


def trained(config, run_name, root, *overrides):
    """Trains with a shipped configuration; the rows of its history, and the run's folder."""
    done = command("trainsjepa", "-c", Path(__file__).parents[2] / "cpu/configs" / config, *overrides, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "collapse" not in done.stdout
    folder = root / "runs" / run_name / "train"
    with (folder / "history.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)], folder


def assert_healthy_in_both_phases(rows):
    """The README's table: KL falls within each phase; the switch starts from an undecided
    predictor; entropy then falls, and stays well above 0; the components stay in use."""
    first = [row for row in rows if row["phase"] == 1]
    second = [row for row in rows if row["phase"] == 2]
    for phase in (first, second):
        assert phase[-1]["train_kl"] < phase[0]["train_kl"] - 0.05
        assert phase[-1]["val_kl"] < phase[0]["val_kl"]
        assert max(row["train_top1"] for row in phase[1:]) > phase[0]["train_top1"]
    assert second[0]["train_kl"] > first[-1]["train_kl"]
    assert 1 < second[-1]["train_entropy_bits"] < second[0]["train_entropy_bits"]
    assert second[-1]["clusters_used"] > 0.5 * second[0]["clusters_used"]
    assert all(row["erank_1"] > 2 for row in rows)


def test_real_speech_goes_through_both_phases(speech, tmp_path):
    """The shipped configuration on ten minutes of real speech."""
    rows, _ = trained(
        "train_twophase.yaml", "sjepa_cpu_twophase", tmp_path, f"dataset.train_path={speech / 'train.zip'}",
        f"dataset.test_path={speech / 'test.zip'}", "dataset.max_train_samples=160", "dataset.max_test_samples=60",
        "train.epochs=4", "train.phase2_start_epoch=2", "train.masked_only_epoch=-1", "gmm.fit_frames=20000",
    )  # fmt: skip
    assert_healthy_in_both_phases(rows)


def test_the_demo_learns_phones_in_both_phases(tmp_path):
    """A third of the demo: phones of single frames by a linear probe, against the same probe on
    MFCC and on the untrained encoder. Seen after three epochs of phase 1 and three of phase 2,
    once: 83 and 83 %, MFCC 73 %, untrained 77 %; half of the distance to the better of these is
    asked for.
    """
    write_corpus(tmp_path / "data/demo", speakers=32, clips=16)
    rows, folder = trained(
        "demo.yaml", "demo", tmp_path, "train.epochs=4", "train.phase2_start_epoch=2", "train.masked_only_epoch=-1"
    )  # fmt: skip
    assert_healthy_in_both_phases(rows)
    corpus = Corpus(tmp_path / "data/demo")
    encoders = [load_encoder(folder / "weights" / name) for name in ("best_phase1.pt", "last.pt")]
    fresh = PretrainedEncoder(untrained(encoders[0].encoder, seed=0))
    to_beat = max(frame_accuracy(corpus, features) for features in (encoded(corpus, fresh), corpus.mfcc))
    for encoder in encoders:
        assert frame_accuracy(corpus, encoded(corpus, encoder)) > to_beat + 0.03
    assert rows[-1]["val_frame_phones"] > rows[-1]["val_pnmi"] > 0.3
