"""Quality of learned features: trains without labels on a labelled corpus, then probes the encoder.

`python -m benchmarks.learning --data FOLDER [--quick] [--seeds 3] [--out FOLDER] [section.key=value
…]`: --data has train.zip, test.zip and labels.tsv (the generated corpus, or any with the columns
split, path, seconds, speaker, phones and optionally times, else computed by forced alignment). For
every seed, at equal hours of audio: the recipe of `cpu/configs/train_twophase.yaml`, its phase 1
only, and variants with --hard and --ablate. Baselines: acoustic features, the untrained encoder,
and the same network trained with phone labels. --quick: one seed, two epochs, no supervised
network.

Metrics: frame phone accuracy (linear probe, without silence), speaker accuracy (time-averaged
features, 80/20 split of the training clips), and triphone ABX error within and across speakers. All
use one layer: that of best phone accuracy on ten held-out training speakers. Finished runs in --out
are reused.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.core.random import generator
from sjepa.entrypoints.train import train
from sjepa.evaluation.abx import draw_triples, error_rates, token_frames, triphones
from sjepa.evaluation.alignment import SILENCE, align
from sjepa.evaluation.classifiers import logistic_regression
from sjepa.evaluation.labels import Span, phones_at, phones_of, spans_of, words_of
from sjepa.features.mfcc import MFCC
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.modules.transformer import init_linear
from sjepa.s_jepa.extractors import untrained
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.pretrained import PretrainedEncoder
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.targets.mixture import MixtureTargets
from sjepa.s_jepa.units.results import saved_targets
from sjepa.s_jepa.weights import load_weights

ROOT = Path(__file__).parents[1]
Row = dict[str, str]
Features = list[Tensor]  # [T, D] of every clip
_FRAME_PROBE_STEPS = 60  # L-BFGS iterations; more change the third digit only
_LEFT_OUT_SPEAKERS = 10
_TAUGHT_EPOCHS, _TAUGHT_RATE, _TAUGHT_CLIPS = 12, 1.5e-3, 4
_QUICK = ("train.epochs=2",)
ALONE = ("train.phase2_start_epoch=-1", "train.masked_only_epoch=-1")  # phase 1
_PLAIN = {
    "MFCC": SpaceSettings(),
    "MFCC by clip": SpaceSettings("clip"),
    "MFCC by clip, ±4": SpaceSettings("clip", context=4),
}


class Scores(NamedTuple):
    """Frame phone and speaker accuracy, ABX error rates, and the evaluated layer."""

    frame_phones: float
    speaker: float
    abx_within: float
    abx_across: float
    layer: int = 0


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
        self.phones = sorted({phone for row in self.rows for phone in phones_of(row["phones"])})
        self.speakers = sorted({row["speaker"] for row in self.rows if row["split"] == "train"})
        self.mfcc = [MFCC(SPEECH)(audio[None], torch.tensor([len(audio)]))[0] for audio in self.audio]
        self.spans = [spans_of(row["times"]) for row in self.rows] if "times" in self.rows[0] else self._aligned()
        self.frame_phones = [
            [phone or SILENCE for phone in phones_at(spans, SPEECH.centres(0, len(features)))]
            for spans, features in zip(self.spans, self.mfcc, strict=True)
        ]

    def _aligned(self) -> list[list[Span]]:
        normal = [x.double().numpy() for x in prepared(self.mfcc, SpaceSettings("clip"))]
        said = [words_of(row["phones"]) for row in self.rows]
        return align(normal, said, SPEECH, training=[row["split"] == "train" for row in self.rows])

    def split(self, name: str) -> list[int]:
        """Indices of the clips of `train` or `test`. `tune`: training clips of the speakers held
        out for layer selection; `fit`: the other training clips."""
        if name in ("train", "test"):
            return [index for index, row in enumerate(self.rows) if row["split"] == name]
        drawn = generator(0, "left out").permutation(len(self.speakers))[:_LEFT_OUT_SPEAKERS]
        left_out = {self.speakers[index] for index in drawn}
        return [index for index in self.split("train") if (self.rows[index]["speaker"] in left_out) == (name == "tune")]


def prepared(features: Features, settings: SpaceSettings) -> Features:
    """Normalised and spliced."""
    space = MixtureSpace(settings, features[0].shape[1])
    return [space.frames(x[None], torch.tensor([len(x)]))[0] for x in features]


def frame_accuracy(corpus: Corpus, features: Features, *, train: str = "train", test: str = "test") -> float:
    """Frame phone accuracy of a logistic regression, without silence."""

    def spoken(split: str) -> tuple[Tensor, Tensor]:
        rows, labels = [], []
        for index in corpus.split(split):
            kept = [frame for frame, phone in enumerate(corpus.frame_phones[index]) if phone != SILENCE]
            rows.append(features[index][kept])
            labels += [corpus.phones.index(corpus.frame_phones[index][frame]) for frame in kept]
        return torch.cat(rows), torch.tensor(labels)

    (train_ND, train_N), (test_ND, test_N) = spoken(train), spoken(test)
    classify = logistic_regression(train_ND[:, None], train_N, num_classes=len(corpus.phones), steps=_FRAME_PROBE_STEPS)
    return float((classify(test_ND[:, None]) == test_N).float().mean())


def speaker_accuracy(corpus: Corpus, features: Features, seed: int) -> float:
    """Speaker accuracy of a logistic regression, mean of three 80/20 splits of the training
    clips."""
    clips = np.array(corpus.split("train"))
    mean_ND = torch.stack([features[index].mean(0) for index in clips])
    speaker_N = torch.tensor([corpus.speakers.index(corpus.rows[index]["speaker"]) for index in clips])
    found = []
    for split in range(3):
        order = generator(seed, "speaker split", split).permutation(len(clips))
        held_out = len(clips) // 5
        train, test = torch.from_numpy(order[held_out:]), torch.from_numpy(order[:held_out])
        classify = logistic_regression(mean_ND[train][:, None], speaker_N[train], num_classes=len(corpus.speakers))
        found.append(float((classify(mean_ND[test][:, None]) == speaker_N[test]).float().mean()))
    return statistics.fmean(found)


def abx_errors(corpus: Corpus, features: Features) -> tuple[float, float]:
    """ABX error rates on the test set, within and across speakers."""
    clips = corpus.split("test")
    tokens = [token for i in clips for token in triphones(i, corpus.rows[i]["speaker"], corpus.spans[i])]
    frames = {i: features[i].numpy() for i in clips}
    seconds = [SPEECH.centres(0, len(x)) for x in corpus.mfcc]
    own = token_frames(tokens, frames, seconds)
    within, across = (error_rates(draw_triples(tokens, kind, seed=0), own).mean() for kind in ("within", "across"))
    return within, across


def scores(corpus: Corpus, layers: Sequence[Features], seed: int) -> Scores:
    """Scores of the layer with the best phone accuracy on the held-out training speakers."""
    chosen = 0
    if len(layers) > 1:
        tuned = [frame_accuracy(corpus, features, train="fit", test="tune") for features in layers]
        chosen = max(range(len(layers)), key=tuned.__getitem__)
    best = layers[chosen]
    return Scores(
        frame_accuracy(corpus, best), speaker_accuracy(corpus, best, seed), *abx_errors(corpus, best), layer=chosen
    )


@torch.no_grad()
def encoded(corpus: Corpus, encoder: PretrainedEncoder) -> Features:
    """Features of the chosen layer."""
    return [encoder(audio[None])[0] for audio in corpus.audio]


@torch.no_grad()
def all_layers(corpus: Corpus, encoder: PretrainedEncoder) -> list[Features]:
    found = [encoder(audio[None], layer="all")[:, 0] for audio in corpus.audio]
    return [[clip[layer] for clip in found] for layer in range(encoder.num_layers)]


@torch.no_grad()
def posteriors(corpus: Corpus, targets: Targets) -> Features:
    """Target posteriors as features."""
    return [
        targets.posteriors(audio[None], torch.tensor([len(audio)]), torch.arange(len(x)))
        for audio, x in zip(corpus.audio, corpus.mfcc, strict=True)
    ]


def taught(corpus: Corpus, like: Encoder, seed: int) -> Encoder:
    """The same network trained on frame phone labels: a supervised topline of the same size."""
    encoder = untrained(like, seed).train()
    width = like.shape.width
    head = init_linear(nn.Linear(width, len(corpus.phones)), width)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_TAUGHT_RATE, betas=(0.9, 0.99))
    clips = np.array(corpus.split("train"))
    steps = _TAUGHT_EPOCHS * -(-len(clips) // _TAUGHT_CLIPS)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _TAUGHT_RATE, total_steps=steps, pct_start=0.08)
    for epoch in range(_TAUGHT_EPOCHS):
        order = clips[generator(seed, "taught", epoch).permutation(len(clips))]
        for start in range(0, len(order), _TAUGHT_CLIPS):
            batch = order[start : start + _TAUGHT_CLIPS]
            audio = nn.utils.rnn.pad_sequence([corpus.audio[i] for i in batch], batch_first=True)
            samples = torch.tensor([len(corpus.audio[i]) for i in batch])
            output = encoder(audio, samples)
            phones = [phone for i in batch for phone in corpus.frame_phones[i]]
            spoken = torch.tensor([phone != SILENCE for phone in phones])
            labels = torch.tensor([corpus.phones.index(phone) for phone in phones if phone != SILENCE])
            loss = F.cross_entropy(head(output.features_BTD[output.real_BT][spoken]), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            rate.step()
    return encoder.eval()


@contextmanager
def hard_targets() -> Iterator[None]:
    """Replaces target posteriors by their one-hot argmax; the mixtures are unchanged."""
    soft = MixtureTargets.posteriors

    def hard(self: MixtureTargets, *chosen: Any) -> Tensor:
        posteriors_NK = soft(self, *chosen)
        return torch.zeros_like(posteriors_NK).scatter_(1, posteriors_NK.argmax(1, keepdim=True), 1.0)

    MixtureTargets.posteriors = hard  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        MixtureTargets.posteriors = soft  # type: ignore[method-assign]


def run(
    options: argparse.Namespace,
    name: str,
    seed: int,
    *overrides: str,
    data: Path | None = None,
    config: Path | None = None,
) -> Path:
    """Trains with `config` on `data` (defaults from the options) and overrides, unless already
    finished; returns the run folder."""
    data = data or options.data
    root = options.out / f"{name}_{seed}"
    finished = sorted((root / name).glob("train*/results.csv"))
    if finished:
        return finished[-1].parent
    settled = load_config(
        config or options.config,
        [f"dataset.train_path={data}/train.zip", f"dataset.test_path={data}/test.zip", f"runs_root={root}",
         f"run_name={name}", f"seed={seed}", *options.overrides, *overrides],
    )  # fmt: skip
    train(settled)
    return sorted((root / name).glob("train*"), key=lambda path: path.stat().st_mtime)[-1]


def training_minutes(folder: Path) -> float:
    """Total duration of a run's epochs."""
    with (folder / "history.csv").open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60


def variants(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Runs per seed and their overrides: the recipe, its phase 1 only, and ablations of phase 1."""
    found = {"both": (), "phase1": ALONE}
    if options.hard:
        found["phase1-hard"] = ALONE
    for change in options.ablate:
        found["phase1-" + change.replace("/", "-")] = (*ALONE, *change.split(","))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--config", type=Path, default=ROOT / "cpu/configs/train_twophase.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, no supervised network")
    parser.add_argument("--hard", action="store_true", help="also phase 1 with hard targets")
    parser.add_argument(
        "--ablate",
        nargs="*",
        default=[],
        metavar="KEY=VALUE[,KEY=VALUE]",
        help="also phase 1 with each set of overrides",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.overrides = 1, [*_QUICK, *options.overrides]
    corpus = Corpus(options.data)
    table: dict[str, list[Scores]] = {}

    def ask(name: str, layers: Sequence[Features], seed: int, note: str = "") -> None:
        found = scores(corpus, layers, seed)
        table.setdefault(name, []).append(found)
        print(f"{name}, seed {seed}: {found}{note}", flush=True)

    for name, settings in _PLAIN.items():
        ask(name, [prepared(corpus.mfcc, settings)], 0)
    engine = Engine(device="cpu", precision="fp32", launch=False)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, overrides in variants(options).items():
            with hard_targets() if name == "phase1-hard" else nullcontext():
                folder = run(options, name, seed, *overrides)
            weights = load_weights(folder / "weights/last.pt")
            encoder = weights.model.encoder
            ask(name, all_layers(corpus, PretrainedEncoder(encoder)), seed, f", {training_minutes(folder):.1f} min")
            if name != "phase1":
                continue
            ask("untrained", all_layers(corpus, PretrainedEncoder(untrained(encoder, seed))), seed)
            if not options.quick:
                ask("phase 1's mixture", [posteriors(corpus, saved_targets(engine, weights))], seed)
                ask("taught", all_layers(corpus, PretrainedEncoder(taught(corpus, encoder, seed))), seed)
    report(table, as_json=options.json)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds; for one seed the value."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def report(table: dict[str, list[Scores]], *, as_json: bool) -> None:
    """Prints mean ± standard deviation over seeds."""
    print(f"{'features':<28}" + "".join(f"{name.replace('_', ' '):>20}" for name in Scores._fields))
    rows = []
    for name, values in table.items():
        columns = list(zip(*values, strict=True))
        means = [statistics.fmean(column) for column in columns]
        cells = [mean_and_deviation(column) for column in columns]
        print(f"{name:<28}" + "".join(f"{cell:>20}" for cell in cells))
        rows.append({"name": name, **dict(zip(Scores._fields, means, strict=True)), "seeds": len(values)})
    if as_json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
