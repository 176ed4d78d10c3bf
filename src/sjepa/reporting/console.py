"""Terminal output: loguru messages alongside two tqdm bars; plain lines if not interactive."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger
from tqdm import tqdm

from sjepa.training.clock import Clock
from sjepa.training.figures import Figure
from sjepa.training.report import EpochResult, StepFigures

T = TypeVar("T")

_FILE_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} | {level: <8} | {message}"
_TERMINAL_FORMAT = "<green>{time:HH:mm:ss}</green> <level>{level: <7}</level> {message}"


log_file: Path | None = None


def is_interactive() -> bool:
    """Whether stdout and stderr are terminals, outside CI."""
    return sys.stderr.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


class Console:
    """Messages to terminal and log file, and progress bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: no output, for ranks other than 0."""
        self.interactive = is_interactive() and not quiet
        self._total_epochs = self._total_steps = 0
        self._epochs: Any = None
        self._steps: Any = None
        logger.remove()
        if quiet:
            return
        logger.add(
            lambda line: tqdm.write(line, file=sys.stdout, end=""),
            format=_TERMINAL_FORMAT,
            level="INFO",
            colorize=self.interactive,
        )

    def log_to(self, folder: Path, name: str) -> None:
        """Also logs every message, with full tracebacks, to a time-stamped file."""
        global log_file
        log_file = path = folder / f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}.log"
        logger.add(path, format=_FILE_FORMAT, level="DEBUG", encoding="utf-8", backtrace=True, diagnose=False)

    def plain(self, text: str) -> None:
        """A block of text without time stamps, on the terminal and in the log."""
        logger.opt(raw=True).info("{}\n", text)

    def note(self, text: str) -> None:
        logger.info("{}", text)

    def warn(self, text: str) -> None:
        logger.warning("{}", text)

    def detail(self, text: str) -> None:
        """Log file only."""
        logger.debug("{}", text)

    def left_out(self, remarks: Iterable[str], dropped: Iterable[tuple[str, str]]) -> None:
        """Warns with `remarks` about the sources; logs each dropped clip and its reason to the
        file."""
        for remark in remarks:
            self.warn(remark)
        for name, reason in dropped:
            self.detail(f"dropped {name}: {reason}")

    def progress(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
        """Progress bar on an interactive terminal; otherwise no output."""
        if not self.interactive:
            yield from items
            return
        yield from tqdm(items, total=total, desc=label, leave=False, dynamic_ncols=True)

    def run_started(self, epochs: int, steps: int) -> None:
        self._total_epochs, self._total_steps = epochs, steps

    def epoch_started(self, clock: Clock, steps: int) -> None:
        if not self.interactive:
            return
        if self._epochs is None:
            self._epochs = tqdm(
                total=self._total_epochs, initial=clock.epoch, desc="epochs", unit="ep", dynamic_ncols=True, position=0
            )
        first = clock.epoch * steps
        done = clock.step - first if clock.batch else 0
        self._steps = tqdm(
            total=min(steps, self._total_steps - first),
            initial=done,
            desc=f"epoch {clock.epoch}",
            unit="step",
            dynamic_ncols=True,
            position=1,
            leave=False,
        )

    def updated(self, clock: Clock) -> None:
        if self._steps is not None:
            self._steps.update(1)

    def figures(self, clock: Clock, figures: StepFigures, kinds: Sequence[Figure]) -> None:
        """One line per `log_every` steps: always in the log file, on the terminal only without
        bars."""
        shown = [kind.text(figures.train[kind.name]) for kind in kinds if kind.where == "both" and not kind.beside]
        line = (
            f"epoch {clock.epoch} step {clock.step}/{self._total_steps}  {'  '.join(shown)}  "
            f"lr {figures.learning_rate:.2e}  grad {figures.gradient_norm:.2f}  {figures.audio_rate:.0f} s audio/s  "
            f"data wait {figures.waiting:.0%}  left {duration(figures.seconds_left)}"
        )
        if self._steps is None:
            logger.info("{}", line)
            return
        logger.debug("{}", line)
        self._steps.set_postfix_str(
            f"{' '.join(shown)} lr {figures.learning_rate:.1e} {figures.audio_rate:.0f}s/s wait {figures.waiting:.0%}"
        )

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None:
        if self._steps is not None:
            self._steps.close()
            self._epochs.update(1)
        logger.info(
            "{}",
            f"epoch {result.epoch} done in {duration(result.seconds)}: {result.summary} | "
            f"{result.audio_hours:.2f} h audio{'  ← best so far' if is_best else ''}",
        )

    def close(self) -> None:
        """Closes the progress bars."""
        for bar in (self._steps, self._epochs):
            if bar is not None:
                bar.close()
        self._steps = self._epochs = None


def duration(seconds: float) -> str:
    """Human-readable duration: 2 h 05 min, 3 min 20 s, 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
