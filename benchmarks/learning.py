"""Do the phases learn? Trains on a labelled corpus without its labels, then probes what came out.

`python -m benchmarks.learning --data FOLDER --minutes 10 --size tiny --seeds 1 --out FOLDER`: --data holds train.zip, test.zip
and labels.tsv (the demo corpus, or any with the columns split, path, speaker, phones and perhaps times). At equal hours of
audio: phase 1 alone, phase 1 with hard targets, both phases; beside MFCC and the untrained encoder. Phones by a linear
probe on the last layer: error rate of CTC, or accuracy of frames where times are given. Speakers by logistic regression
on the mean over time, four fifths of the training clips against the rest. Runs and their curves stay in --out.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import torch
from torch import Tensor

from sjepa import load_encoder
from sjepa.config.load import load_config
from sjepa.core.frames import SPEECH
from sjepa.core.random import generator, key
from sjepa.entrypoints.train import train
from sjepa.evaluation.probes import Transcribed, linear_ctc, logistic_regression
from sjepa.features.mfcc import MFCC
from sjepa.modules.encoder import Encoder
from sjepa.targets.mfcc import MFCCTargets

ROOT = Path(__file__).parents[1]
Row = dict[str, str]
Features = Callable[[Tensor], Tensor]  # [S] audio → [T, D]
_TIMING_STEPS = 40


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
        self.phones = sorted({phone for row in self.rows for phone in _phones(row)} | {"SIL"})
        self.speakers = sorted({row["speaker"] for row in self.rows if row["split"] == "train"})
        self.has_times = "times" in self.rows[0]

    def split(self, name: str) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row["split"] == name]


def _phones(row: Row) -> list[str]:
    return [phone.rstrip("012") for phone in row["phones"].replace("|", " ").split()]


def phone_score(corpus: Corpus, features: list[Tensor], seed: int) -> float:
    """Frame accuracy where times are known, else the error rate of a linear CTC head."""
    number = {phone: index + 1 for index, phone in enumerate(corpus.phones)}
    if corpus.has_times:
        train, test = (_labelled_frames(corpus, features, corpus.split(name), number) for name in ("train", "test"))
        found = logistic_regression(*train, test[0], num_classes=len(number) + 1, steps=200)
        return float((found == test[1]).float().mean())
    clips = [
        Transcribed(features[index], tuple(number[phone] for phone in _phones(corpus.rows[index])))
        for index in corpus.split("train")
    ]
    test_clips = corpus.split("test")
    found_clips = linear_ctc(clips, [features[index] for index in test_clips], num_symbols=len(number), seed=seed)
    return float(
        jiwer.wer(
            [" ".join(_phones(corpus.rows[index])) for index in test_clips],
            [" ".join(corpus.phones[symbol - 1] for symbol in symbols) for symbols in found_clips],
        )
    )


def _labelled_frames(
    corpus: Corpus, features: list[Tensor], clips: list[int], number: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Frames [N, D] with the phone [N] at their centre."""
    rows, labels = [], []
    centre = SPEECH.receptive_field_samples / 2 / SPEECH.sample_rate
    for index in clips:
        times = (np.arange(len(features[index])) * SPEECH.hop_samples / SPEECH.sample_rate) + centre
        for part in corpus.rows[index]["times"].split():
            phone, _, span = part.partition(":")
            start, _, end = span.partition("-")
            inside = np.flatnonzero((times >= float(start)) & (times < float(end)))
            rows.append(features[index][inside])
            labels += [number[phone]] * len(inside)
    return torch.cat(rows), torch.tensor(labels)


def speaker_score(corpus: Corpus, features: list[Tensor], seed: int) -> float:
    """Accuracy on a fifth of the training clips, of speakers that the other four fifths hold."""
    clips = np.array(corpus.split("train"))
    order = generator(seed, "speaker split").permutation(len(clips))
    held_out = len(clips) // 5
    mean_ND = torch.stack([features[index].mean(0) for index in clips])
    speaker_N = torch.tensor([corpus.speakers.index(corpus.rows[index]["speaker"]) for index in clips])
    train, test = torch.from_numpy(order[held_out:]), torch.from_numpy(order[:held_out])
    found = logistic_regression(mean_ND[train], speaker_N[train], mean_ND[test], num_classes=len(corpus.speakers))
    return float((found == speaker_N[test]).float().mean())


@torch.no_grad()
def encoded(corpus: Corpus, encoder: Encoder) -> list[Tensor]:
    return [encoder(audio[None]).features_BTD[0] for audio in corpus.audio]


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
    scores: dict[str, list[tuple[float, float]]] = {}

    def probe(name: str, features: list[Tensor], seed: int) -> None:
        scores.setdefault(name, []).append((phone_score(corpus, features, seed), speaker_score(corpus, features, seed)))
        print(f"{name}, seed {seed}: {scores[name][-1]}", flush=True)

    mfcc = MFCC()
    for seed in range(options.seeds):
        probe("MFCC", [mfcc(audio[None], torch.tensor([len(audio)]))[0] for audio in corpus.audio], seed)
        runs = {
            "phase 1 alone": run(options, "phase1", seed, *alone),
            "both phases": run(options, "both", seed, length),
        }
        with hard_targets():
            runs["phase 1, hard targets"] = run(options, "hard", seed, *alone)
        encoders = {name: load_encoder(folder / "weights/last.pt") for name, folder in runs.items()}
        torch.manual_seed(key(seed, "untrained"))
        encoders["untrained"] = Encoder(encoders["both phases"].shape).eval()
        for name, encoder in encoders.items():
            probe(name, encoded(corpus, encoder), seed)
    report(scores, "phone accuracy" if corpus.has_times else "phone error rate", as_json=options.json)


def report(scores: dict[str, list[tuple[float, float]]], phones: str, *, as_json: bool) -> None:
    """Mean ± deviation over seeds."""
    print(f"{'features':<24}{phones:>22}{'speaker accuracy':>22}")
    rows = []
    for name, values in scores.items():
        cells = []
        for column in zip(*values, strict=True):
            deviation = statistics.stdev(column) if len(column) > 1 else float("nan")
            cells.append((statistics.mean(column), deviation))
        print(f"{name:<24}" + "".join(f"{f'{mean:.4f} ± {deviation:.4f}':>22}" for mean, deviation in cells))
        rows.append(
            {"name": name, phones.replace(" ", "_"): cells[0][0], "speaker_accuracy": cells[1][0], "seeds": len(values)}
        )
    if as_json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
