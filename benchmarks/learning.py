"""Do the phases learn? Trains on a labelled corpus without its labels, then probes what came out.

`python -m benchmarks.learning --data FOLDER --minutes 10 --size tiny --seeds 1 --out FOLDER`: --data has train.zip, test.zip
and labels.tsv (the demo corpus, or any with the columns split, path, speaker, phones and perhaps times). At equal hours of
audio: phase 1 alone, phase 1 with hard targets, both phases; beside MFCC and the untrained encoder. Three linear probes on
the last layer: phones of single frames (silence left out; where the table has no times, they come from an alignment of
its transcripts, see `alignment.py`), phone error rate of a CTC head, and speakers on the mean over time, four fifths of the
training clips against the rest. Runs and their curves stay in --out.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jiwer
import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.alignment import SILENCE, align
from sjepa import load_encoder
from sjepa.config.load import load_config
from sjepa.core.random import generator, key
from sjepa.entrypoints.train import train
from sjepa.evaluation.classifiers import logistic_regression
from sjepa.evaluation.labels import frame_centres, phones_at, phones_of, spans_of
from sjepa.evaluation.recognition import Transcribed, greedy, train_head
from sjepa.features.mfcc import MFCC
from sjepa.modules.encoder import Encoder
from sjepa.pretrained import PretrainedEncoder
from sjepa.targets.mfcc import MFCCTargets

ROOT = Path(__file__).parents[1]
Row = dict[str, str]
_TIMING_STEPS = 40
_FRAME_PROBE_STEPS = 100  # of L-BFGS; more change the third digit
_CTC_STEPS = 1800


class Scores(NamedTuple):
    """What the probes found: shares of frames and clips, errors per phone."""

    frame_accuracy: float
    phone_error_rate: float
    speaker_accuracy: float


class Corpus:
    """Audio and labels of both sets, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "labels.tsv").open(encoding="utf-8", newline="") as file:
            self.rows: list[Row] = list(csv.DictReader(file, delimiter="\t"))
        archives = {split: zipfile.ZipFile(folder / f"{split}.zip") for split in ("train", "test")}
        self.audio = [
            torch.from_numpy(soundfile.read(io.BytesIO(archives[row["split"]].read(row["path"])), dtype="float32")[0])
            for row in self.rows
        ]
        self.phones = sorted({phone for row in self.rows for phone in _phones(row)} | {SILENCE})
        self.speakers = sorted({row["speaker"] for row in self.rows if row["split"] == "train"})
        self.mfcc = [MFCC()(audio[None], torch.tensor([len(audio)]))[0] for audio in self.audio]
        self.frame_phones = self._given_times() if "times" in self.rows[0] else self._aligned()

    def _given_times(self) -> list[list[str]]:
        """The phone at the centre of every frame."""
        return [
            [phone or SILENCE for phone in phones_at(spans_of(row["times"]), frame_centres(0, len(features)))]
            for row, features in zip(self.rows, self.mfcc, strict=True)
        ]

    def _aligned(self) -> list[list[str]]:
        normal = [((x - x.mean(0)) / x.std(0).clamp(min=1e-3)).double().numpy() for x in self.mfcc]
        return align(normal, [_phones(row) for row in self.rows], [row["split"] == "train" for row in self.rows])

    def split(self, name: str) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row["split"] == name]


def _phones(row: Row) -> list[str]:
    return phones_of(row["phones"])


def frame_accuracy(corpus: Corpus, features: list[Tensor]) -> float:
    """Share of the test set's frames, silence left out, whose phone a logistic regression finds."""

    def spoken(split: str) -> tuple[Tensor, Tensor]:
        rows, labels = [], []
        for index in corpus.split(split):
            kept = [frame for frame, phone in enumerate(corpus.frame_phones[index]) if phone != SILENCE]
            rows.append(features[index][kept])
            labels += [corpus.phones.index(corpus.frame_phones[index][frame]) for frame in kept]
        return torch.cat(rows), torch.tensor(labels)

    train, (test_ND, test_N) = spoken("train"), spoken("test")
    train_ND, train_N = train
    classify = logistic_regression(train_ND[:, None], train_N, num_classes=len(corpus.phones), steps=_FRAME_PROBE_STEPS)
    found_N = classify(test_ND[:, None])
    return float((found_N == test_N).float().mean())


def phone_error_rate(corpus: Corpus, features: list[Tensor], seed: int) -> float:
    """Insertions, deletions and substitutions of a linear CTC head on the test set, per phone."""
    number = {phone: index + 1 for index, phone in enumerate(corpus.phones)}
    clips = [
        Transcribed(features[index][:, None], tuple(number[phone] for phone in _phones(corpus.rows[index])))
        for index in corpus.split("train")
    ]
    test = corpus.split("test")
    posteriors = train_head("linear", clips, num_symbols=len(number), seed=seed, steps=_CTC_STEPS)
    found = [greedy(posteriors(features[index][:, None])) for index in test]
    said = [" ".join(_phones(corpus.rows[index])) for index in test]
    return float(jiwer.wer(said, [" ".join(corpus.phones[symbol - 1] for symbol in symbols) for symbols in found]))


def speaker_accuracy(corpus: Corpus, features: list[Tensor], seed: int) -> float:
    """Accuracy on a fifth of the training clips, of speakers that the other four fifths hold."""
    clips = np.array(corpus.split("train"))
    order = generator(seed, "speaker split").permutation(len(clips))
    held_out = len(clips) // 5
    mean_ND = torch.stack([features[index].mean(0) for index in clips])
    speaker_N = torch.tensor([corpus.speakers.index(corpus.rows[index]["speaker"]) for index in clips])
    train, test = torch.from_numpy(order[held_out:]), torch.from_numpy(order[:held_out])
    classify = logistic_regression(mean_ND[train][:, None], speaker_N[train], num_classes=len(corpus.speakers))
    return float((classify(mean_ND[test][:, None]) == speaker_N[test]).float().mean())


@torch.no_grad()
def encoded(corpus: Corpus, encoder: PretrainedEncoder) -> list[Tensor]:
    return [encoder(audio[None])[0] for audio in corpus.audio]


@contextmanager
def hard_targets() -> Iterator[None]:
    """Phase 1 with the argmax of each posterior in place of the posterior. The mixture is the same."""
    soft = MFCCTargets.posteriors

    def hard(self: MFCCTargets, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor) -> Tensor:
        posteriors_NK = soft(self, clean_BS, num_samples_B, frame_N)
        return torch.zeros_like(posteriors_NK).scatter_(1, posteriors_NK.argmax(1, keepdim=True), 1.0)

    MFCCTargets.posteriors = hard  # type: ignore[method-assign]
    try:
        yield
    finally:
        MFCCTargets.posteriors = soft  # type: ignore[method-assign]


def run(options: argparse.Namespace, name: str, seed: int, *overrides: str) -> Path:
    """Trains as the two-phase configuration says, with overrides; the run's folder."""
    root = options.out / f"{name}_{seed}"
    config = load_config(
        ROOT / "cpu/configs/train_twophase.yaml",
        [f"dataset.train_path={options.data}/train.zip", f"dataset.test_path={options.data}/test.zip", f"runs_root={root}",
         f"run_name={name}", f"seed={seed}", f"model.size={options.size}", *overrides, *options.overrides],
    )  # fmt: skip
    train(config)
    return sorted((root / name).glob("train*"), key=lambda path: path.stat().st_mtime)[-1]


def epochs_in(options: argparse.Namespace) -> int:
    """How many epochs fit into the time of one run."""
    folder = run(options, "timing", 0, f"train.max_steps={_TIMING_STEPS}", "train.masked_only_epoch=-1")
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seconds, hours = sum(float(row["seconds"]) for row in rows), float(rows[-1]["audio_hours"])
    corpus_hours = _audio_hours(options.data)
    return max(3, round(options.minutes * 60 / (seconds / hours * corpus_hours)))


def _audio_hours(data: Path) -> float:
    with (data / "labels.tsv").open(encoding="utf-8", newline="") as file:
        return (
            sum(float(row["seconds"]) for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train") / 3600
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training in each run")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    corpus = Corpus(options.data)
    length = f"train.epochs={epochs_in(options)}"
    alone = (length, "train.phase2_start_epoch=-1", "train.masked_only_epoch=-1")
    scores: dict[str, list[Scores]] = {}

    def probe(name: str, features: list[Tensor], seed: int) -> None:
        found = Scores(
            frame_accuracy(corpus, features),
            phone_error_rate(corpus, features, seed),
            speaker_accuracy(corpus, features, seed),
        )
        scores.setdefault(name, []).append(found)
        print(f"{name}, seed {seed}: {found}", flush=True)

    for seed in range(options.seeds):
        probe("MFCC", corpus.mfcc, seed)
        runs = {
            "phase 1 alone": run(options, "phase1", seed, *alone),
            "both phases": run(options, "both", seed, length),
        }
        with hard_targets():
            runs["phase 1, hard targets"] = run(options, "hard", seed, *alone)
        encoders = {name: load_encoder(folder / "weights/last.pt") for name, folder in runs.items()}
        torch.manual_seed(key(seed, "untrained"))
        encoders["untrained"] = PretrainedEncoder(Encoder(encoders["both phases"].encoder.shape))
        for name, encoder in encoders.items():
            probe(name, encoded(corpus, encoder), seed)
    report(scores, as_json=options.json)


def report(scores: dict[str, list[Scores]], *, as_json: bool) -> None:
    """Mean ± deviation over seeds."""
    print(f"{'features':<24}" + "".join(f"{name.replace('_', ' '):>22}" for name in Scores._fields))
    rows = []
    for name, values in scores.items():
        means = Scores(*(statistics.mean(column) for column in zip(*values, strict=True)))
        deviations = [
            statistics.stdev(column) if len(column) > 1 else float("nan") for column in zip(*values, strict=True)
        ]
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in zip(means, deviations, strict=True)]
        print(f"{name:<24}" + "".join(f"{cell:>22}" for cell in cells))
        rows.append({"name": name, **means._asdict(), "seeds": len(values)})
    if as_json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
