"""Probe tasks on labelled clips. [Probing]

N clips or frames, T frames, L layers, D features.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.random import generator, key
from sjepa.evaluation.abx import KINDS, Token, draw_triples, error_rates, token_frames, triphones
from sjepa.evaluation.classifiers import Classify, logistic_regression, multilayer_perceptron
from sjepa.evaluation.examples import LabelledClips, Positions, ProbeSettings, Split, splits
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SILENCES, SPEAKER, TEXT_COLUMNS, Labels, phones_at, phones_of
from sjepa.evaluation.recognition import Head, Transcribed, beam_search, greedy, train_head
from sjepa.evaluation.scores import BySpeaker, Probed, Score

FRAME_PHONES, PHONES, CHARACTERS, ABX = "frame_phones", "phones", "characters", "abx"

_CLIP_STEPS, _FRAME_STEPS = 2000, 100  # of L-BFGS; on many frames, more steps change only the third digit
_HEADS: tuple[Head, ...] = ("linear", "bilstm")

Found = Iterator[Probed]


class Examples(NamedTuple):
    """Features [N, L, D], the class of each [N], and the clip that it belongs to."""

    x_NLD: Tensor
    class_N: Tensor
    clip_N: Positions


def run_task(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: Sequence[int], settings: ProbeSettings
) -> Found:
    """Runs the probes of a task on `columns` of the extracted layers; yields name, a score per
    split, and chance level.

    Raises UserError if the labels are insufficient.
    """
    kinds: dict[str, Callable[..., Found]] = {
        FRAME_PHONES: _frame_phones,
        PHONES: _recognition,
        CHARACTERS: _recognition,
        ABX: _abx,
    }
    yield from kinds.get(task, _clip_labels)(task, clips, features, list(columns), settings)


def check_task(task: str, clips: LabelledClips, settings: ProbeSettings) -> None:
    """Raises UserError if the labels are insufficient for a task."""
    if task in (CHARACTERS, PHONES):
        values: Sequence[Any] = _texts(task, clips.labels)
    elif task == ABX:
        clips.labels.column("times")
        clips.labels.column(SPEAKER)
        if not len(draw_triples(_tokens(clips, _tested(clips)), "within", seed=settings.seed).a_N):
            raise UserError("probe.tasks: abx: no speaker says two triphones that differ in the middle phone alone")
        return
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
    return task in (FRAME_PHONES, PHONES, CHARACTERS, ABX)


def needs_jiwer(task: str) -> bool:
    return task in (PHONES, CHARACTERS)


def _clip_labels(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Found:
    """One class per clip, from time-averaged features."""
    values = clips.labels.column(task)
    usable = clips.usable(values, features)
    classes = _classes(task, [values[i] for i in usable])
    class_N = np.array([classes.index(value) if value in classes else -1 for value in values])
    mean_NLD = torch.stack([_mean(features, i)[columns] for i in usable])
    place = {clip: row for row, clip in enumerate(usable.tolist())}
    parts = _splits(task, clips, usable, settings)

    def examples(positions: Positions) -> Examples:
        x_NLD = mean_NLD[[place[i] for i in positions.tolist()]]
        class_of = torch.from_numpy(class_N[positions])
        return Examples(x_NLD.to(settings.device), class_of.to(settings.device), positions)

    found = [(examples(part.train), examples(part.test)) for part in parts]
    yield from _classifiers("logistic", clips, found, len(classes), _CLIP_STEPS, settings)


def _frame_phones(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Found:
    """The phone at the centre of each frame, without silence."""
    times = clips.labels.column("times")
    usable = clips.usable(times, features)
    spans = clips.labels.spans
    spoken = {
        i: ["" if phone in SILENCES else phone for phone in phones_at(spans[i], features.seconds[i])]
        for i in usable.tolist()
    }
    classes = _classes(task, [phone for phones in spoken.values() for phone in phones if phone])
    number = {phone: index for index, phone in enumerate(classes)}

    def examples(positions: Positions, purpose: str, index: int) -> Examples:
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
        clip_N = np.repeat(positions, list(map(len, parts)))
        return Examples(
            torch.cat(rows).to(settings.device), torch.from_numpy(class_N[known]).to(settings.device), clip_N
        )

    parts = _splits(task, clips, usable, settings)
    found = [
        (examples(part.train, "train", index), examples(part.test, "test", index)) for index, part in enumerate(parts)
    ]
    yield from _classifiers("linear", clips, found, len(classes), _FRAME_STEPS, settings)


def _classifiers(
    linear: str,
    clips: LabelledClips,
    examples: Sequence[tuple[Examples, Examples]],
    num_classes: int,
    steps: int,
    settings: ProbeSettings,
) -> Found:
    """A linear probe, named `linear`, and an MLP on the (train, test) examples of every split."""
    for train, test in examples:
        if not len(train.class_N) or not len(test.class_N):
            raise UserError("probe.tasks: frame_phones: a split has nothing but silence on one side")
    common = [torch.bincount(train.class_N, minlength=num_classes).argmax() for train, _ in examples]
    chance = statistics.fmean(
        float((test.class_N == most).float().mean()) for (_, test), most in zip(examples, common, strict=True)
    )

    def scores(fit: Callable[[Tensor, Tensor, int], Classify]) -> list[Score]:
        found = []
        for index, (train, test) in enumerate(examples):
            right_N = fit(train.x_NLD, train.class_N, index)(test.x_NLD) == test.class_N
            figure = clips.by_speaker(right_N.tolist(), [1.0] * len(right_N), test.clip_N)
            found.append(_score({"accuracy": (float(right_N.float().mean()), figure)}, len(train.clip_N), len(right_N)))
        return found

    fitted = scores(lambda x, y, _: logistic_regression(x, y, num_classes=num_classes, steps=steps))
    yield Probed(linear, fitted, chance)
    perceptron = scores(
        lambda x, y, index: multilayer_perceptron(x, y, num_classes=num_classes, seed=key(settings.seed, "mlp", index))
    )
    yield Probed("mlp", perceptron, chance)


def _recognition(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Found:
    """Phone or character recognition with CTC heads."""
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
            found.append(_score(_errors(task, said, heard, part.test, clips), len(part.train), len(part.test)))
        yield Probed(f"{kind} CTC", found, float("nan"))


def _abx(task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings) -> Found:
    """ABX has no training and hence no learned layer weighting: several columns give no result."""
    if len(columns) > 1:
        return
    readable = [i for i in _tested(clips).tolist() if features.means[i] is not None]
    tokens = _tokens(clips, np.array(readable, np.int64))
    frames = {token.clip: _frames(features, token.clip)[:, columns[0]].numpy() for token in tokens}
    own = token_frames(tokens, frames, features.seconds)
    values: dict[str, tuple[float, BySpeaker | None]] = {}
    judged = 0
    for kind in KINDS:
        triples = draw_triples(tokens, kind, seed=settings.seed)
        errors = error_rates(triples, own)
        judged += len(triples.a_N)
        values[kind] = (errors.mean(), BySpeaker(errors.present, errors.mean))
    yield Probed("triphones", [_score(values, 0, judged)], float("nan"))


def _tested(clips: LabelledClips) -> Positions:
    """Indices of the test clips (ABX has no training)."""
    return np.flatnonzero(~clips.in_train)


def _tokens(clips: LabelledClips, positions: Positions) -> list[Token]:
    spans, rows = clips.labels.spans, clips.labels.rows
    return [token for i in positions.tolist() for token in triphones(i, rows[i].get(SPEAKER, ""), spans[i])]


def _score(values: dict[str, tuple[float, BySpeaker | None]], train: int, test: int) -> Score:
    by_speaker = {name: figure for name, (_, figure) in values.items() if figure is not None}
    return Score({name: value for name, (value, _) in values.items()}, train, test, by_speaker)


def _errors(
    task: str, said: list[list[str]], heard: list[list[str]], clip_N: Positions, clips: LabelledClips
) -> dict[str, tuple[float, BySpeaker | None]]:
    """Error rates over all clips, and by speaker."""
    import jiwer

    if task == PHONES:
        texts, measures = (" ", {"PER": jiwer.process_words})
    else:
        texts, measures = ("", {"CER": jiwer.process_characters, "WER": jiwer.process_words})
    found = {}
    for name, process in measures.items():
        counts = [process(texts.join(one), texts.join(other)) for one, other in zip(said, heard, strict=True)]
        wrong_N = [count.substitutions + count.deletions + count.insertions for count in counts]
        length_N = [count.hits + count.substitutions + count.deletions for count in counts]
        rate = sum(wrong_N) / max(1, sum(length_N))
        found[name] = (rate, clips.by_speaker(wrong_N, length_N, clip_N))
    return found


def _texts(task: str, labels: Labels) -> list[list[str]]:
    """The target symbols of each clip."""
    if task == PHONES:
        return [phones_of(text) for text in labels.column("phones")]
    texts = [" ".join(labels.text(position).split()) for position in range(len(labels.rows))]
    if not any(texts):
        labels.column(TEXT_COLUMNS[0])  # raises the error
    return [list(text) for text in texts]


def _classes(task: str, values: Sequence[str]) -> list[str]:
    classes = sorted(set(values))
    if len(classes) < 2:
        raise UserError(f"probe.tasks: {task}: the clips have {len(classes)} different labels, and not two or more")
    return classes


def _splits(task: str, clips: LabelledClips, usable: Positions, settings: ProbeSettings) -> list[Split]:
    return splits(task, clips, usable, settings, has_training_set=needs_frames(task))


def _mean(features: ClipFeatures, position: int) -> Tensor:
    mean_LD = features.means[position]
    assert mean_LD is not None
    return mean_LD


def _frames(features: ClipFeatures, position: int) -> Tensor:
    frames_TLD = features.frames[position]
    assert frames_TLD is not None
    return frames_TLD
