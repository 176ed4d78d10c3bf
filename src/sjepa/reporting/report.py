"""The listener of a training run: terminal, history, pictures and, on request, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sjepa.core.progress import silent
from sjepa.metrics import Metrics
from sjepa.reporting.console import Console
from sjepa.reporting.history import History, Row
from sjepa.reporting.plots import draw_history
from sjepa.reporting.run_dir import RunDir
from sjepa.training.clock import Clock
from sjepa.training.report import EpochResult, StepFigures

_SECONDS_BETWEEN_DRAWINGS = 30.0
_MATCH, _SMALL_LOSS = "val_pitch_match", 0.01


class RunReport:
    """Tells one run. `events` is a TensorBoard writer or None."""

    def __init__(self, console: Console, run_dir: RunDir, *, events: Any = None) -> None:
        self.history = History(run_dir.history)
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
        self._console.figures(clock, figures)
        if self._events is not None:
            for name in Metrics.NAMES:
                self._events.add_scalar(f"train_steps/{name}", getattr(figures.metrics, name), clock.step)
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
        """Draws the history as it stands."""
        draw_history(self.history.rows, self._run_dir.plots)
        self._drawn = time.monotonic()

    def finished(self) -> None:
        """The run is at its end."""
        for text in worse_phases(self.history.rows):
            self._console.warn(text)

    def close(self) -> None:
        self._console.close()
        if self._events is not None:
            self._events.close()


def worse_phases(rows: Sequence[Row]) -> list[str]:
    """What to say of a phase 2 whose features match less across pitch than those that phase 1 ended with."""
    known = [row for row in rows if isinstance(row.get(_MATCH), int | float)]
    first, second = ([row for row in known if row["phase"] == phase] for phase in (1, 2))
    if not first or not second or second[-1][_MATCH] >= first[-1][_MATCH] - _SMALL_LOSS:
        return []
    return [
        f"phase 2 has made the features worse, as far as can be told without labels: at another pitch "
        f"{second[-1][_MATCH]:.1%} of frames are found again, {first[-1][_MATCH]:.1%} at the end of phase 1 "
        f"(weights/best_phase1.pt)"
    ]


class Silence:
    """Tells nobody: of several processes one does."""

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
