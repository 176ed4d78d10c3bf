"""Classification probes: labels of clips, phones of frames. [Probing]

N clips or frames, T frames, L layers, D features.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.random import generator, key
from sjepa.evaluation.classifiers import Classify, logistic_regression, multilayer_perceptron
from sjepa.evaluation.examples import LabelledClips, Positions, ProbeSettings, splits
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SILENCES, phones_at
from sjepa.evaluation.scores import Probed, Score, score

_CLIP_STEPS, _FRAME_STEPS = 2000, 100  # of L-BFGS; on many frames, more steps change only the third digit


class Examples(NamedTuple):
    """Features [N, L, D], the class of each [N], and the clip that it belongs to."""

    x_NLD: Tensor
    class_N: Tensor
    clip_N: Positions


def clip_labels(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[Probed]:
    """One class per clip, from time-averaged features."""
    values = clips.labels.column(task)
    usable = clips.usable(values, features)
    names = classes_of(task, [values[i] for i in usable])
    class_N = np.array([names.index(value) if value in names else -1 for value in values])
    mean_NLD = torch.stack([features.mean_of(i)[columns] for i in usable])
    place = {clip: row for row, clip in enumerate(usable.tolist())}
    parts = splits(task, clips, usable, settings, has_training_set=False)

    def examples(positions: Positions) -> Examples:
        x_NLD = mean_NLD[[place[i] for i in positions.tolist()]]
        class_of = torch.from_numpy(class_N[positions])
        return Examples(x_NLD.to(settings.device), class_of.to(settings.device), positions)

    found = [(examples(part.train), examples(part.test)) for part in parts]
    yield from _classifiers("logistic", clips, found, len(names), _CLIP_STEPS, settings)


def frame_phones(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[Probed]:
    """The phone at the centre of each frame, without silence."""
    times = clips.labels.column("times")
    usable = clips.usable(times, features)
    spans = clips.labels.spans
    spoken = {
        i: ["" if phone in SILENCES else phone for phone in phones_at(spans[i], features.seconds[i])]
        for i in usable.tolist()
    }
    names = classes_of(task, [phone for phones in spoken.values() for phone in phones if phone])
    number = {phone: index for index, phone in enumerate(names)}

    def examples(positions: Positions, purpose: str, index: int) -> Examples:
        class_N = np.array([number.get(phone, -1) for i in positions.tolist() for phone in spoken[i]])
        known = np.flatnonzero(class_N >= 0)
        if len(known) > settings.max_frames:
            draws = generator(settings.seed, "probe frames", purpose, index)
            known = np.sort(draws.choice(known, settings.max_frames, replace=False))
        starts = np.cumsum([0, *(len(spoken[i]) for i in positions.tolist())])
        parts = np.split(known, np.searchsorted(known, starts[1:-1]))
        rows = [
            features.frames_of(i)[part - start][:, columns]
            for i, start, part in zip(positions.tolist(), starts[:-1], parts, strict=True)
        ]
        clip_N = np.repeat(positions, list(map(len, parts)))
        return Examples(
            torch.cat(rows).to(settings.device), torch.from_numpy(class_N[known]).to(settings.device), clip_N
        )

    parts = splits(task, clips, usable, settings, has_training_set=True)
    found = [
        (examples(part.train, "train", index), examples(part.test, "test", index)) for index, part in enumerate(parts)
    ]
    yield from _classifiers("linear", clips, found, len(names), _FRAME_STEPS, settings)


def _classifiers(
    linear: str,
    clips: LabelledClips,
    examples: Sequence[tuple[Examples, Examples]],
    num_classes: int,
    steps: int,
    settings: ProbeSettings,
) -> Iterator[Probed]:
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
            found.append(score({"accuracy": (float(right_N.float().mean()), figure)}, len(train.clip_N), len(right_N)))
        return found

    fitted = scores(lambda x, y, _: logistic_regression(x, y, num_classes=num_classes, steps=steps))
    yield Probed(linear, fitted, chance)
    perceptron = scores(
        lambda x, y, index: multilayer_perceptron(x, y, num_classes=num_classes, seed=key(settings.seed, "mlp", index))
    )
    yield Probed("mlp", perceptron, chance)


def classes_of(task: str, values: Sequence[str]) -> list[str]:
    """The different labels, sorted; raises UserError below two."""
    found = sorted(set(values))
    if len(found) < 2:
        raise UserError(f"probe.tasks: {task}: the clips have {len(found)} different labels, and not two or more")
    return found
