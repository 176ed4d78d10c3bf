"""The terminal: loguru lines and two tqdm bars that never tear each other; plain lines where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger
from tqdm import tqdm

from sjepa.training.clock import Clock
from sjepa.training.report import EpochResult, StepFigures

T = TypeVar("T")

_FILE_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} | {level: <8} | {message}"
_TERMINAL_FORMAT = "<green>{time:HH:mm:ss}</green> <level>{level: <7}</level> {message}"


log_file: Path | None = None


def is_interactive() -> bool:
    """Whether someone watches: a terminal on both streams and no CI."""
    return sys.stderr.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


class Console:
    """Lines to the terminal and the log file, and the bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: of several processes one speaks, and this is another."""
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
        """Also writes every line, and tracebacks in full, to a file named by the time."""
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
        """For the log file alone."""
        logger.debug("{}", text)

    def left_out(self, remarks: Iterable[str], dropped: Iterable[tuple[str, str]]) -> None:
        """What a user should know of sources, and, in the log file, each clip that is not used with the reason."""
        for remark in remarks:
            self.warn(remark)
        for name, reason in dropped:
            self.detail(f"dropped {name}: {reason}")

    def progress(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
        """A bar where someone watches; nothing where nobody does."""
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

    def figures(self, clock: Clock, figures: StepFigures) -> None:
        """One line per `log_every`: to the log file always, to the terminal where there are no bars."""
        metrics = figures.metrics
        line = (
            f"epoch {clock.epoch} step {clock.step}/{self._total_steps}  loss {metrics.loss:.4f}  kl {metrics.kl:.4f}  "
            f"top1 {metrics.top1:.3f}  entropy {metrics.entropy_bits:.2f} bit  lr {figures.learning_rate:.2e}  "
            f"grad {figures.gradient_norm:.2f}  {figures.audio_rate:.0f} s audio/s  data wait {figures.waiting:.0%}  "
            f"left {duration(figures.seconds_left)}"
        )
        if self._steps is None:
            logger.info("{}", line)
            return
        logger.debug("{}", line)
        self._steps.set_postfix_str(
            f"loss {metrics.loss:.3f} kl {metrics.kl:.3f} top1 {metrics.top1:.2f} H {metrics.entropy_bits:.1f}b "
            f"lr {figures.learning_rate:.1e} {figures.audio_rate:.0f}s/s wait {figures.waiting:.0%}"
        )

    def epoch_ended(self, result: EpochResult, *, is_best: bool) -> None:
        if self._steps is not None:
            self._steps.close()
            self._epochs.update(1)
        train, val, moved = result.train, result.validation, result.targets
        targets = "" if moved.layer is None else f", layer {moved.layer}, {moved.reseeded} re-seeded"
        judged = "".join(f", {name} {value:.3f}" for name, value in result.judged.items())
        logger.info(
            "{}",
            f"epoch {result.epoch} done in {duration(result.seconds)}: train loss {train.loss:.4f} kl {train.kl:.4f} "
            f"top1 {train.top1:.3f} | val kl {val.kl:.4f} top1 {val.top1:.3f} entropy {val.entropy_bits:.2f} bit "
            f"(targets {val.target_entropy_bits:.2f}), {val.clusters_used:.0f} components in use{targets}{judged} | "
            f"{result.audio_hours:.2f} h audio{'  ← best so far' if is_best else ''}",
        )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        for bar in (self._steps, self._epochs):
            if bar is not None:
                bar.close()
        self._steps = self._epochs = None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person reads them: 2 h 05 min, 3 min 20 s, 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
