"""Reporting interface of a run. Training code does not depend on terminal, files or plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sjepa.core.progress import Messages
from sjepa.training.clock import Clock
from sjepa.training.schedule import Stage


@dataclass(frozen=True)
class StepFigures:
    """Means since the last report: `audio_rate` is seconds of audio per second, `waiting` the share
    of time spent waiting for data, `seconds_left` an estimate for the whole run."""

    train: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    audio_rate: float
    waiting: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Results of an epoch: metrics by name, further history columns in front (`columns`) and at
    the end (`details`), `summary` for the terminal; `gradient_norm` is the mean over the epoch's
    updates, `seconds` the duration of the epoch, `waiting` the share of it spent waiting for
    data."""

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
    """Receives the events of a run."""

    def epoch_started(self, clock: Clock, steps: int) -> None: ...

    def updated(self, clock: Clock) -> None: ...

    def figures(self, clock: Clock, figures: StepFigures) -> None: ...

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None: ...


class Section(NamedTuple):
    """A part of the HTML report of a run: `body` is HTML."""

    title: str
    body: str
