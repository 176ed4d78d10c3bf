"""What a run tells whoever listens. The training code knows no terminal, file or plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sjepa.config.schedule import Stage
from sjepa.core.progress import Progress
from sjepa.metrics import Metrics
from sjepa.targets.base import TargetFigures
from sjepa.training.clock import Clock


@dataclass(frozen=True)
class StepFigures:
    """Means since the last report: `audio_rate` is seconds of audio per second, `waiting` the share of time spent
    waiting for data, `seconds_left` an estimate for the whole run."""

    metrics: Metrics
    learning_rate: float
    gradient_norm: float
    audio_rate: float
    waiting: float
    seconds_left: float


@dataclass(frozen=True)
class EpochResult:
    """One row of the history; `gradient_norm` is the mean over the epoch's updates, `judged` what labels say, if there are
    any."""

    epoch: int
    stage: Stage
    learning_rate: float
    train: Metrics
    validation: Metrics
    effective_ranks: tuple[float, ...]
    spreads: tuple[float, ...]
    targets: TargetFigures
    gradient_norm: float
    seconds: float
    audio_hours: float
    waiting: float
    skipped_updates: int
    unreadable_clips: int
    judged: Mapping[str, float] = field(default_factory=dict)


class Report(Protocol):
    """The listener."""

    progress: Progress

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def epoch_started(self, clock: Clock, steps: int) -> None: ...

    def updated(self, clock: Clock) -> None: ...

    def figures(self, clock: Clock, figures: StepFigures) -> None: ...

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None: ...
