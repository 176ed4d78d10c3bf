"""What a run reports, and to whom. The training code knows no terminal, file or plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sjepa.core.progress import Messages
from sjepa.training.clock import Clock
from sjepa.training.schedule import Stage


@dataclass(frozen=True)
class StepFigures:
    """Means since the last report: `audio_rate` is seconds of audio per second, `waiting` the share of time spent
    waiting for data, `seconds_left` an estimate for the whole run."""

    train: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    audio_rate: float
    waiting: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """An epoch: figures by name, further columns of the history in front (`columns`) and at the end (`details`), `summary`
    for the terminal; `gradient_norm` is the mean over the epoch's updates, `seconds` what the epoch took, `waiting` the
    share of it spent waiting for data."""

    epoch: int
    stage: Stage
    learning_rate: float
    train: Mapping[str, float]
    validation: Mapping[str, float]
    columns: Mapping[str, Any]
    details: Mapping[str, Any]
    gradient_norm: float
    seconds: float
    audio_hours: float
    waiting: float
    skipped_updates: int
    unreadable_clips: int
    summary: str


class Report(Messages, Protocol):
    """The listener."""

    def epoch_started(self, clock: Clock, steps: int) -> None: ...

    def updated(self, clock: Clock) -> None: ...

    def figures(self, clock: Clock, figures: StepFigures) -> None: ...

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None: ...
