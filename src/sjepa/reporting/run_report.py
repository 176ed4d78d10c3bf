"""Reports a training run to terminal, history, plots and, optionally, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sjepa.core.progress import silent
from sjepa.reporting.console import Console
from sjepa.reporting.history import History, Row
from sjepa.reporting.plots import draw_history
from sjepa.reporting.run_dir import RunDir
from sjepa.reporting.step_log import StepLog
from sjepa.training.clock import Clock
from sjepa.training.figures import Figure
from sjepa.training.report import EpochResult, StepFigures

_SECONDS_BETWEEN_DRAWINGS = 30.0


class RunReport:
    """Reports one run. `events` is a TensorBoard writer or None."""

    def __init__(
        self,
        console: Console,
        run_dir: RunDir,
        figures: Sequence[Figure],
        *,
        remarks: Callable[[Sequence[Row]], list[str]] = lambda rows: [],
        events: Any = None,
        step_log: StepLog | None = None,
    ) -> None:
        """`figures`: the system's metrics; `remarks` returns the warnings at the end of a run."""
        self._step_log = step_log
        self.history = History(run_dir.history, figures)
        self._figures, self._remarks = figures, remarks
        self.progress = console.progress
        self._console, self._run_dir, self._events = console, run_dir, events
        self._drawn = 0.0

    def note(self, text: str) -> None:
        self._console.note(text)

    def detail(self, text: str) -> None:
        self._console.detail(text)

    def warn(self, text: str) -> None:
        self._console.warn(text)

    def epoch_started(self, clock: Clock, steps: int) -> None:
        self._console.epoch_started(clock, steps)

    def updated(self, clock: Clock) -> None:
        self._console.updated(clock)

    def figures(self, clock: Clock, figures: StepFigures) -> None:
        self._console.figures(clock, figures, self._figures)
        if self._step_log is not None:
            self._step_log.append(clock, figures)
        if self._events is not None:
            for name, value in figures.train.items():
                self._events.add_scalar(f"train_steps/{name}", value, clock.step)
            for name in ("learning_rate", "gradient_norm", "audio_rate", "waiting"):
                self._events.add_scalar(f"run/{name}", getattr(figures, name), clock.step)

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None:
        self._console.epoch_ended(result, is_best=is_best)
        row = self.history.append(result)
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_DRAWINGS:
            self.draw()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._events.add_scalar(f"epochs/{name}", value, result.epoch)

    def draw(self) -> None:
        """Plots the history so far."""
        draw_history(self.history.rows, self._figures, self._run_dir.plots)
        self._drawn = time.monotonic()

    def finished(self) -> None:
        """Logs the warnings about the whole run."""
        for text in self._remarks(self.history.rows):
            self._console.warn(text)

    def close(self) -> None:
        self._console.close()
        if self._events is not None:
            self._events.close()


class Silence:
    """Reports nothing, for ranks other than 0."""

    progress = staticmethod(silent)

    def note(self, text: str) -> None:
        pass

    detail = warn = note

    def epoch_started(self, clock: Clock, steps: int) -> None:
        pass

    def updated(self, clock: Clock) -> None:
        pass

    def figures(self, clock: Clock, figures: StepFigures) -> None:
        pass

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None:
        pass

    def draw(self) -> None:
        pass

    close = finished = draw
