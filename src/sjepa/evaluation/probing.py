"""The probe tasks: which there are, what each needs, and how to run one. [Probing]"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sjepa.core.errors import UserError
from sjepa.evaluation.abx import draw_triples
from sjepa.evaluation.class_probes import classes_of, clip_labels, frame_phones
from sjepa.evaluation.examples import LabelledClips, ProbeSettings, splits
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SILENCES, SPEAKER
from sjepa.evaluation.scores import Probed
from sjepa.evaluation.sequence_probes import CHARACTERS, PHONES, abx, recognition, tested, tokens_of, transcripts

FRAME_PHONES, ABX = "frame_phones", "abx"

Found = Iterator[Probed]


def run_task(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: Sequence[int], settings: ProbeSettings
) -> Found:
    """Runs the probes of a task on `columns` of the extracted layers; yields name, a score per
    split, and chance level.

    Raises UserError if the labels are insufficient.
    """
    kinds: dict[str, Callable[..., Found]] = {
        FRAME_PHONES: frame_phones,
        PHONES: recognition,
        CHARACTERS: recognition,
        ABX: abx,
    }
    yield from kinds.get(task, clip_labels)(task, clips, features, list(columns), settings)


def check_task(task: str, clips: LabelledClips, settings: ProbeSettings) -> None:
    """Raises UserError if the labels are insufficient for a task."""
    if task in (CHARACTERS, PHONES):
        values: Sequence[Any] = transcripts(task, clips.labels)
    elif task == ABX:
        clips.labels.column("times")
        clips.labels.column(SPEAKER)
        if not len(draw_triples(tokens_of(clips, tested(clips)), "within", seed=settings.seed).a_N):
            raise UserError("probe.tasks: abx: no speaker says two triphones that differ in the middle phone alone")
        return
    elif task == FRAME_PHONES:
        values = [[span.phone for span in spans if span.phone not in SILENCES] for spans in clips.labels.spans]
        clips.labels.column("times")
        classes_of(task, [phone for phones in values for phone in phones])
    else:
        values = clips.labels.column(task)
        classes_of(task, [value for value in values if value])
    usable = np.array([position for position, value in enumerate(values) if value], np.int64)
    splits(task, clips, usable, settings, has_training_set=needs_frames(task))


def needs_frames(task: str) -> bool:
    return task in (FRAME_PHONES, PHONES, CHARACTERS, ABX)


def needs_jiwer(task: str) -> bool:
    return task in (PHONES, CHARACTERS)
