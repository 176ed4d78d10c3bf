"""Training and test clips of probes. N examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.core.random import generator
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SPEAKER, Labels
from sjepa.evaluation.scores import BySpeaker

_HELD_OUT = 0.2

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe: device, seed, and fields of the section `probe`."""

    device: torch.device
    seed: int
    splits: int
    apart: str | None
    max_frames: int
    steps: int
    beam: int


class Split(NamedTuple):
    train: Positions
    test: Positions


@dataclass(frozen=True)
class LabelledClips:
    """The clips of the test set and, with `in_train` set, of the training set of probes; one label
    row each."""

    labels: Labels
    in_train: NDArray[np.bool_]

    @cached_property
    def speakers(self) -> NDArray[np.int64] | None:
        """Speaker index of each clip; None unless all clips have one."""
        names = [row.get(SPEAKER, "") for row in self.labels.rows]
        if not all(names):
            return None
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def by_speaker(
        self, part_N: Sequence[float], whole_N: Sequence[float], clip_N: NDArray[np.int64]
    ) -> BySpeaker | None:
        """The ratio sum(`part_N`) / sum(`whole_N`) by speaker; example n belongs to clip
        `clip_N[n]`. None if speakers are unknown."""
        if self.speakers is None:
            return None
        return BySpeaker.ratio(part_N, whole_N, self.speakers[clip_N], int(self.speakers.max()) + 1)

    def usable(self, values: Sequence[Any], features: ClipFeatures) -> Positions:
        """Indices of the readable clips that have a value."""
        return np.array(
            [i for i, mean in enumerate(features.means) if mean is not None and values[i]],
            np.int64,
        )


def splits(
    task: str, clips: LabelledClips, usable: Positions, settings: ProbeSettings, *, has_training_set: bool
) -> list[Split]:
    """Random 80/20 splits of the usable clips. With `has_training_set` (frame and recognition
    probes) and a separate training set: 80 % of that, and the whole test set. Clips with the
    same label `apart` are never in both parts."""
    own_train, own_test = usable[clips.in_train[usable]], usable[~clips.in_train[usable]]
    apart = None if settings.apart in (None, task) else clips.labels.column(str(settings.apart))
    group_N = usable if apart is None else np.array([apart[position] for position in usable])
    across = has_training_set and bool(clips.in_train.any())
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
            raise UserError(f"probe.tasks: {task}: {there} are too few for training and test{alike}")
        found.append(part)
    return found
