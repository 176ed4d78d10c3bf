"""Reports a training run to terminal, history, plots and, optionally, other loggers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sjepa.core.progress import silent
from sjepa.reporting.console import Console
from sjepa.reporting.history import History, Row
from sjepa.reporting.plots import draw_history
from sjepa.reporting.run_dir import RunDir
from sjepa.reporting.step_log import StepLog
from sjepa.reporting.trackers import EPOCHS, Tracker
from sjepa.training.clock import Clock
from sjepa.training.figures import Figure
from sjepa.training.report import EpochResult, StepFigures

_SECONDS_BETWEEN_DRAWINGS, _DRAWING_SHARE = 30.0, 0.05  # at least so far apart, at most so much of the time
_RUN_FIGURES = ("learning_rate", "gradient_norm", "audio_rate", "waiting")


class RunReport:
    """Reports one run."""

    def __init__(
        self,
        console: Console,
        run_dir: RunDir,
        figures: Sequence[Figure],
        *,
        remarks: Callable[[Sequence[Row]], list[str]] = lambda rows: [],
        trackers: Sequence[Tracker] = (),
        step_log: StepLog | None = None,
        plots: bool = True,
    ) -> None:
        """`figures`: the system's metrics; `remarks` returns the warnings at the end of a run;
        `plots`: whether `draw` does."""
        self._step_log = step_log
        self.history = History(run_dir.history, figures)
        self._figures, self._remarks = figures, remarks
        self.progress = console.progress
        self._console, self._run_dir, self._trackers = console, run_dir, trackers
        self._plots, self._next_drawing = plots, 0.0

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
        values = {f"train_steps/{name}": value for name, value in figures.train.items()}
        values |= {f"run/{name}": getattr(figures, name) for name in _RUN_FIGURES}
        for tracker in self._trackers:
            tracker.log(values, clock.step)

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None:
        self._console.epoch_ended(result, is_best=is_best)
        row = self.history.append(result)
        if time.monotonic() > self._next_drawing:
            self.draw()
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "epoch"}
        values = {f"{EPOCHS}{name}": value for name, value in numbers.items()}
        for tracker in self._trackers:
            tracker.log(values, result.epoch)

    def draw(self) -> None:
        """Plots the history so far."""
        if not self._plots:
            return
        started = time.monotonic()
        draw_history(self.history.rows, self._figures, self._run_dir.plots)
        ended = time.monotonic()
        self._next_drawing = ended + max(_SECONDS_BETWEEN_DRAWINGS, (ended - started) / _DRAWING_SHARE)

    def finished(self) -> None:
        """Logs the warnings about the whole run."""
        for text in self._remarks(self.history.rows):
            self._console.warn(text)

    def close(self) -> None:
        self._console.close()
        for tracker in self._trackers:
            tracker.close()


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
