"""Probe tasks over labelled clips: which clips train and test, what is measured. [Probing]

N clips or frames, T frames, L layers, D features.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.core.random import generator, key
from sjepa.evaluation.classifiers import Classify, logistic_regression, multilayer_perceptron
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SILENCES, TEXT_COLUMNS, Labels, phones_at, phones_of
from sjepa.evaluation.recognition import Head, Transcribed, beam_search, greedy, train_head

FRAME_PHONES, PHONES, CHARACTERS = "frame_phones", "phones", "characters"

_HELD_OUT = 0.2
_CLIP_STEPS, _FRAME_STEPS = 2000, 100  # of L-BFGS; on many frames more change the third digit
_HEADS: tuple[Head, ...] = ("linear", "bilstm")

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ProbeSettings:
    """What a probe depends on besides features and labels, the fields of the section `probe`; and where it computes."""

    device: torch.device
    seed: int
    splits: int
    apart: str | None
    max_frames: int
    steps: int
    beam: int


class Score(NamedTuple):
    """What one probe found in one split: metric name → value, and how many examples it trained and was tested on."""

    values: dict[str, float]
    train: int
    test: int


class ProbeRow(NamedTuple):
    """A row of probes.csv. `deviation` is that of a sample (n − 1) over splits, NaN for a single one; `chance`: what naming
    the most frequent class of the training examples gives, NaN where there are no classes."""

    task: str
    probe: str
    metric: str
    features: str
    layer: str
    mean: float
    deviation: float
    splits: int
    train: int
    test: int
    chance: float


class Split(NamedTuple):
    train: Positions
    test: Positions


@dataclass(frozen=True)
class LabelledClips:
    """The clips of the test set and, with `in_train` set, of the training set of probes; one label row each."""

    labels: Labels
    in_train: NDArray[np.bool_]

    def usable(self, values: Sequence[Any], features: ClipFeatures) -> Positions:
        """The clips that have a value and could be read."""
        return np.array(
            [i for i, mean in enumerate(features.means) if mean is not None and values[i]],
            np.int64,
        )


def run_task(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: Sequence[int], settings: ProbeSettings
) -> Iterator[tuple[str, list[Score], float]]:
    """The probes of a task on the chosen `columns` of the layers extracted: name, a score for every split, and chance.

    Raises UserError if the labels do not do for it.
    """
    kinds: dict[str, Callable[..., Iterator[tuple[str, list[Score], float]]]] = {
        FRAME_PHONES: _frame_phones,
        PHONES: _recognition,
        CHARACTERS: _recognition,
    }
    yield from kinds.get(task, _clip_labels)(task, clips, features, list(columns), settings)


def check_task(task: str, clips: LabelledClips, settings: ProbeSettings) -> None:
    """Raises UserError if the labels do not do for a task."""
    if task in (CHARACTERS, PHONES):
        values: Sequence[Any] = _texts(task, clips.labels)
    elif task == FRAME_PHONES:
        values = [[span.phone for span in spans if span.phone not in SILENCES] for spans in clips.labels.spans]
        clips.labels.column("times")
        _classes(task, [phone for phones in values for phone in phones])
    else:
        values = clips.labels.column(task)
        _classes(task, [value for value in values if value])
    usable = np.array([position for position, value in enumerate(values) if value], np.int64)
    _splits(task, clips, usable, settings)


def needs_frames(task: str) -> bool:
    return task in (FRAME_PHONES, PHONES, CHARACTERS)


def needs_jiwer(task: str) -> bool:
    return task in (PHONES, CHARACTERS)


def rows_of(task: str, probe: str, features: str, layer: str, scores: Sequence[Score], chance: float) -> list[ProbeRow]:
    """One row per metric, over the splits."""
    rows = []
    for metric in scores[0].values:
        values = [score.values[metric] for score in scores]
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        mean = statistics.fmean(values)
        train, test = scores[0].train, scores[0].test
        rows.append(ProbeRow(task, probe, metric, features, layer, mean, deviation, len(values), train, test, chance))
    return rows


def write_rows(path: Path, rows: Sequence[ProbeRow]) -> None:
    """probes.csv"""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ProbeRow._fields)
    for row in rows:
        values = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
        writer.writerow(["" if value == "nan" else value for value in values])
    write_text(path, text.getvalue())


def _clip_labels(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[tuple[str, list[Score], float]]:
    """One class per clip, on the mean over time."""
    values = clips.labels.column(task)
    usable = clips.usable(values, features)
    classes = _classes(task, [values[i] for i in usable])
    class_N = np.array([classes.index(value) if value in classes else -1 for value in values])
    mean_NLD = torch.stack([_mean(features, i)[columns] for i in usable])
    place = {clip: row for row, clip in enumerate(usable.tolist())}
    parts = _splits(task, clips, usable, settings)

    def examples(positions: Positions) -> tuple[Tensor, Tensor]:
        x_NLD = mean_NLD[[place[i] for i in positions.tolist()]]
        return x_NLD.to(settings.device), torch.from_numpy(class_N[positions]).to(settings.device)

    found = [(examples(part.train), examples(part.test)) for part in parts]
    yield from _classifiers("logistic", found, len(classes), _CLIP_STEPS, settings)


def _frame_phones(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[tuple[str, list[Score], float]]:
    """The phone at the centre of a frame, silence left out."""
    times = clips.labels.column("times")
    usable = clips.usable(times, features)
    spans = clips.labels.spans
    spoken = {
        i: ["" if phone in SILENCES else phone for phone in phones_at(spans[i], features.seconds[i])]
        for i in usable.tolist()
    }
    classes = _classes(task, [phone for phones in spoken.values() for phone in phones if phone])
    number = {phone: index for index, phone in enumerate(classes)}

    def examples(positions: Positions, purpose: str, index: int) -> tuple[Tensor, Tensor]:
        class_N = np.array([number.get(phone, -1) for i in positions.tolist() for phone in spoken[i]])
        known = np.flatnonzero(class_N >= 0)
        if len(known) > settings.max_frames:
            draws = generator(settings.seed, "probe frames", purpose, index)
            known = np.sort(draws.choice(known, settings.max_frames, replace=False))
        starts = np.cumsum([0, *(len(spoken[i]) for i in positions.tolist())])
        parts = np.split(known, np.searchsorted(known, starts[1:-1]))
        rows = [
            _frames(features, i)[part - start][:, columns]
            for i, start, part in zip(positions.tolist(), starts[:-1], parts, strict=True)
        ]
        return torch.cat(rows).to(settings.device), torch.from_numpy(class_N[known]).to(settings.device)

    parts = _splits(task, clips, usable, settings)
    found = [
        (examples(part.train, "train", index), examples(part.test, "test", index)) for index, part in enumerate(parts)
    ]
    yield from _classifiers("linear", found, len(classes), _FRAME_STEPS, settings)


def _classifiers(
    linear: str,
    examples: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]],
    num_classes: int,
    steps: int,
    settings: ProbeSettings,
) -> Iterator[tuple[str, list[Score], float]]:
    """A linear probe, called `linear`, and an MLP on the (train, test) examples of every split."""
    for train, test in examples:
        if not len(train[1]) or not len(test[1]):
            raise UserError("probe.tasks: frame_phones: a split has nothing but silence on one side")
    common = [torch.bincount(train[1], minlength=num_classes).argmax() for train, _ in examples]
    chance = statistics.fmean(
        float((test[1] == most).float().mean()) for (_, test), most in zip(examples, common, strict=True)
    )

    def scores(fit: Callable[[Tensor, Tensor, int], Classify]) -> list[Score]:
        found = []
        for index, (train, test) in enumerate(examples):
            right = fit(*train, index)(test[0]) == test[1]
            found.append(Score({"accuracy": float(right.float().mean())}, len(train[1]), len(test[1])))
        return found

    yield linear, scores(lambda x, y, _: logistic_regression(x, y, num_classes=num_classes, steps=steps)), chance
    perceptron = scores(
        lambda x, y, index: multilayer_perceptron(x, y, num_classes=num_classes, seed=key(settings.seed, "mlp", index))
    )
    yield "mlp", perceptron, chance


def _recognition(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[tuple[str, list[Score], float]]:
    """Phones, or the characters of words, by CTC heads."""
    texts = _texts(task, clips.labels)
    usable = clips.usable(texts, features)
    symbols = sorted({symbol for i in usable for symbol in texts[i]})
    number = {symbol: index + 1 for index, symbol in enumerate(symbols)}
    parts = _splits(task, clips, usable, settings)

    def example(position: int) -> Transcribed:
        x_TLD = _frames(features, position)[:, columns].to(settings.device)
        return Transcribed(x_TLD, tuple(number[symbol] for symbol in texts[position]))

    for kind in _HEADS:
        found = []
        for index, part in enumerate(parts):
            seed = key(settings.seed, task, index)
            train = [example(i) for i in part.train.tolist()]
            try:
                posteriors = train_head(kind, train, num_symbols=len(symbols), seed=seed, steps=settings.steps)
            except ValueError as error:
                raise UserError(f"probe.tasks: {task}: {error}") from None
            said = [texts[i] for i in part.test.tolist()]
            heard = []
            for i in part.test.tolist():
                log_TV = posteriors(example(i).features_TLD)
                best = greedy(log_TV) if settings.beam == 1 else beam_search(log_TV, width=settings.beam)
                heard.append([symbols[symbol - 1] for symbol in best])
            found.append(Score(_errors(task, said, heard), len(part.train), len(part.test)))
        yield f"{kind} CTC", found, float("nan")


def _errors(task: str, said: list[list[str]], heard: list[list[str]]) -> dict[str, float]:
    import jiwer

    if task == PHONES:
        return {"PER": float(jiwer.wer([" ".join(one) for one in said], [" ".join(one) for one in heard]))}
    references, hypotheses = (["".join(one) for one in both] for both in (said, heard))
    return {
        "CER": float(jiwer.cer(references, hypotheses)),
        "WER": float(jiwer.wer(references, hypotheses)),
    }


def _texts(task: str, labels: Labels) -> list[list[str]]:
    """The symbols of each clip."""
    if task == PHONES:
        return [phones_of(text) for text in labels.column("phones")]
    texts = [" ".join(labels.text(position).split()) for position in range(len(labels.rows))]
    if not any(texts):
        labels.column(TEXT_COLUMNS[0])  # says what is missing
    return [list(text) for text in texts]


def _classes(task: str, values: Sequence[str]) -> list[str]:
    classes = sorted(set(values))
    if len(classes) < 2:
        raise UserError(f"probe.tasks: {task}: the clips have {len(classes)} different labels, and not two or more")
    return classes


def _splits(task: str, clips: LabelledClips, usable: Positions, settings: ProbeSettings) -> list[Split]:
    """Random 80/20 splits of the usable clips; for frames and recognition, if there is a training set, four fifths of that
    against the whole test set. Clips that share the label `apart` are never on both sides."""
    own_train, own_test = usable[clips.in_train[usable]], usable[~clips.in_train[usable]]
    apart = None if settings.apart in (None, task) else clips.labels.column(str(settings.apart))
    group_N = usable if apart is None else np.array([apart[position] for position in usable])
    across = needs_frames(task) and bool(clips.in_train.any())
    if across and apart is not None:
        known = {apart[position] for position in own_test}
        own_train = own_train[[apart[position] not in known for position in own_train]]
    found = []
    for index in range(settings.splits):
        draws = generator(settings.seed, "probe split", task, index)
        if across:
            kept = max(1, round((1 - _HELD_OUT) * len(own_train)))
            part = Split(np.sort(draws.permutation(own_train)[:kept]), own_test)
        else:
            names = draws.permutation(np.unique(group_N))
            held_out = np.isin(group_N, names[: max(1, round(_HELD_OUT * len(names)))])
            part = Split(usable[~held_out], usable[held_out])
        if not len(part.train) or not len(part.test):
            there = f"{len(usable)} labelled clips"
            if across:
                there = f"{len(own_train)} labelled clips of probe.train_path and {len(own_test)} of the test set"
            alike = f", with probe.apart: {settings.apart}" if apart is not None else ""
            raise UserError(f"probe.tasks: {task}: {there} do not do for training and test{alike}")
        found.append(part)
    return found


def _mean(features: ClipFeatures, position: int) -> Tensor:
    mean_LD = features.means[position]
    assert mean_LD is not None
    return mean_LD


def _frames(features: ClipFeatures, position: int) -> Tensor:
    frames_TLD = features.frames[position]
    assert frames_TLD is not None
    return frames_TLD
