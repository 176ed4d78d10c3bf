"""The training loop, shared by all systems."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sjepa.core.distributed import Engine
from sjepa.dataset.batch import Batch
from sjepa.dataset.loader import EpochLoader, Loader
from sjepa.training.checkpoint import Checkpoints, Stateful
from sjepa.training.clock import Clock, Interval
from sjepa.training.figures import Best
from sjepa.training.health import CollapseAlarm, News, NonFiniteUpdates, RunStopped, UnreadableClips
from sjepa.training.report import EpochResult, Report, StepFigures
from sjepa.training.schedule import Schedule, Stage
from sjepa.training.task import Interrupted, Task, Update, Validation


@dataclass(frozen=True)
class Cadence:
    """Schedule and intervals in optimiser steps; an update takes `grad_accum` micro-batches per
    rank."""

    schedule: Schedule[Stage]
    grad_accum: int
    processes: int
    log_every: int
    save_every_steps: int

    @property
    def batches_per_update(self) -> int:
        """Micro-batches per update over all ranks."""
        return self.grad_accum * self.processes


@dataclass(frozen=True)
class RunParts:
    """What a run needs besides its task: engine, data loaders with fingerprint, checkpoints."""

    engine: Engine
    train: EpochLoader
    validation: Loader
    fingerprint: Stateful
    checkpoints: Checkpoints


STATE = ("data", "clock", "best", "alarm", "non_finite", "unreadable", "epoch")  # of the loop, in checkpoints


class Trainer:
    """Runs epochs from the current position (`clock`) to the end of the schedule."""

    def __init__(
        self, task: Task, parts: RunParts, cadence: Cadence, report: Report, *, best: Best, alarm: CollapseAlarm
    ) -> None:
        self.task, self.parts, self.cadence, self.report, self.best = task, parts, cadence, report, best
        stage = task.stage
        self.clock = Clock(entered={stage.name: stage.start_step}, per_update=cadence.batches_per_update)
        self.stop_signal: int | None = None  # stop signal received by this rank
        self._alarm, self._ranks = alarm, parts.engine.ranks
        self._non_finite = NonFiniteUpdates()
        self._unreadable = UnreadableClips(parts.train.num_clips)
        self._epoch, self._recent = Interval(), Interval()

    @property
    def state(self) -> dict[str, Stateful]:
        """Everything needed to resume, by name, in loading order."""
        return {
            "data": self.parts.fingerprint,
            **self.task.state,
            "clock": self.clock,
            "best": self.best,
            "alarm": self._alarm,
            "non_finite": self._non_finite,
            "unreadable": self._unreadable,
            "epoch": self._epoch,
        }

    def run(self) -> None:
        """Trains to the end of the schedule. Raises Interrupted or RunStopped, the state saved."""
        while not self._finished or self.clock.batch > 0:  # a started epoch is completed
            self._start_epoch()
            self._train_epoch()
            self._end_epoch()
            if self._finished:
                break
        self._non_finite.check_end()

    @property
    def _finished(self) -> bool:
        return self.clock.step >= self.cadence.schedule.total_steps

    def _train_epoch(self) -> None:
        if self._finished:
            return
        for window in self._windows():
            self._enter_stage_if_due()
            if self.task.prepare(self.clock.step):
                self.best.restart()
            update, rate = self._update(window)
            self._follow_up(update, rate, window)
            if self._finished:
                return

    def _enter_stage_if_due(self) -> None:
        stage, old = self.cadence.schedule.at(self.clock.step), self.task.stage
        if stage.name == old.name:
            return
        new_phase = stage.phase != old.phase
        if new_phase and self.clock.batch > 0:  # mid-epoch: not validated and saved yet
            self._keep_weights(self._validate())
            self._train_mode()
            self._save(inside_epoch=True)
        self.task.enter(stage, pause=self._stop_if_asked, best_stays=self.best.figure.across_phases)
        if new_phase:
            self.best.restart()
            self._recent = Interval()
        self.report.note(f"step {self.clock.step}: {stage.name} starts")
        self.clock.entered[stage.name] = self.clock.step

    def _stop_if_asked(self) -> None:
        """Raises Interrupted if any rank received a stop signal; for long work that changes no
        state before its end."""
        if self._ranks.any(self.stop_signal is not None):
            raise Interrupted(max(number or 0 for number in self._ranks.each(self.stop_signal)))

    def _save_if_stopped(self) -> None:
        """Like `_stop_if_asked`, but saves the state first; for work that a resumed run repeats."""
        try:
            self._stop_if_asked()
        except Interrupted:
            self._save(inside_epoch=True)
            raise

    def _start_epoch(self) -> None:
        self._train_mode()
        self._recent = Interval()
        self._epoch.restart()
        if self.clock.batch == 0:
            self._epoch = Interval()
            self._unreadable.reset()
        self.report.epoch_started(self.clock, self.cadence.schedule.steps_per_epoch)

    def _train_mode(self) -> None:
        for learner in self.task.learners:
            learner.model.train()

    def _windows(self) -> Iterator[list[Batch]]:
        """Yields the micro-batches of one update at a time, from the current position; the last
        update of an epoch may have fewer."""
        schedule, per_update = self.cadence.schedule, self.cadence.batches_per_update
        first_step = self.clock.step - self.clock.batch // per_update
        augment = [
            schedule.at(first_step + number // per_update).augment for number in range(self.parts.train.num_batches)
        ]
        batches = self.parts.train.epoch(self.clock.epoch, first_batch=self.clock.batch, augment=augment)
        while True:
            asked = time.perf_counter()
            window = [batch for _, batch in zip(range(self.cadence.grad_accum), batches, strict=False)]
            for interval in (self._epoch, self._recent):
                interval.waited += time.perf_counter() - asked
            if not window:
                return
            yield window

    def _update(self, window: list[Batch]) -> tuple[Update, float]:
        train, rate = self.parts.train, self.cadence.schedule.rate(self.clock.step)
        news = self.stop_signal is not None or any(batch.failures for batch in window)
        update = self.task.update(window, step=self.clock.step, rate=rate, news=news)
        self._epoch.gradient_norm += update.gradient_norm if update.finite else 0.0
        self._epoch.updates += update.finite
        left = train.num_batches - self.clock.batch
        self.clock.tick(
            batches=min(self.cadence.batches_per_update, left), audio_seconds=update.samples / train.sample_rate
        )
        self._recent.samples += update.samples
        self._recent.updates += 1
        return update, rate

    def _follow_up(self, update: Update, rate: float, window: list[Batch]) -> None:
        clock, cadence = self.clock, self.cadence
        self.report.updated(clock)
        stop_signal = self._watch(update, window)
        if clock.step % cadence.log_every == 0 or clock.step == cadence.schedule.total_steps:
            self._log(update, rate)
        if stop_signal is not None:
            self._save(inside_epoch=True)
            raise Interrupted(stop_signal)
        if cadence.save_every_steps and clock.step % cadence.save_every_steps == 0:
            self._save(inside_epoch=True)

    def _watch(self, update: Update, window: list[Batch]) -> int | None:
        """Warns of unreadable clips and non-finite updates on any rank. Raises RunStopped, with
        the state saved, if there are too many. Returns the stop signal if any rank received one."""
        failures = tuple(failure for batch in window for failure in batch.failures)
        own = News(self.stop_signal, failures, () if update.finite else update.clips)
        talk = update.news or not update.finite or self._ranks.size == 1  # later signals wait for the next update
        told = self._ranks.each(own) if talk else []
        for failure in [failure for news in told for failure in news.failures]:
            self.report.warn(f"skipped {failure.name}: {failure.reason}")
            self._unreadable.saw([failure])
        self._non_finite.saw(update.finite)
        if not update.finite:
            clips = ", ".join(name for news in told for name in news.clips)
            self.report.warn(f"step {self.clock.step}: loss or gradient not finite, left out: {clips}")
        try:
            self._non_finite.check()
            self._unreadable.check()
        except Exception:
            self._save(inside_epoch=True)
            raise
        return max((news.stop_signal for news in told if news.stop_signal is not None), default=None)

    def _log(self, update: Update, rate: float) -> None:
        reading, recent = self.task.recent(), self._recent
        steps_left = self.cadence.schedule.total_steps - self.clock.step
        figures = StepFigures(
            reading.figures,
            rate,
            update.gradient_norm,
            recent.samples / self.parts.train.sample_rate / max(recent.seconds, 1e-9),
            recent.waiting,
            steps_left * recent.seconds / recent.updates,
        )
        self.report.figures(self.clock, figures)
        self._sound_alarm(reading.signs)
        self._recent = Interval()

    def _sound_alarm(self, signs: Sequence[str]) -> None:
        try:
            self._alarm.check(signs, self.clock.epoch, self.report)
        except RunStopped:
            self._save(inside_epoch=True)
            raise

    def _end_epoch(self) -> None:
        clock, task = self.clock, self.task
        task.recent()
        validation, train = self._validate(), task.epoch()
        epoch, signs = clock.epoch, train.signs or validation.signs
        is_best = self._keep_weights(validation, collapsed=bool(signs))
        self.report.epoch_ended(self._result(validation), is_best=is_best)
        whole = clock.batch >= self.parts.train.num_batches
        if whole:
            task.restart_epoch()
            clock.next_epoch()
        self._save(inside_epoch=not whole)  # max_steps may end mid-epoch; a longer run resumes there
        self._alarm.check(signs, epoch, self.report)
        self._stop_if_asked()

    def _validate(self) -> Validation:
        loader = self.parts.validation
        batches = self.report.progress(loader.epoch(0), total=loader.num_rounds, label="validation")
        return self.task.validate(batches, warn=self.report.warn, pause=self._save_if_stopped)

    def _keep_weights(self, validation: Validation, *, collapsed: bool = False) -> bool:
        """Saves the weights; returns whether they are the best so far, which is never so if
        `collapsed`."""
        value = validation.figures.get(self.best.figure.name, math.nan)
        is_best = not collapsed and self.best.offer(value, self.clock.epoch)
        self.task.keep_weights(self.clock, validation, is_best=is_best)
        return is_best

    def _result(self, validation: Validation) -> EpochResult:
        clock, interval, train = self.clock, self._epoch, self.task.epoch().figures
        return EpochResult(
            epoch=clock.epoch,
            stage=self.task.stage,
            learning_rate=self.cadence.schedule.rate(max(0, clock.step - 1)),
            train=train,
            validation=validation.figures,
            columns=validation.columns,
            details=validation.details,
            gradient_norm=interval.gradient_norm / interval.updates if interval.updates else math.nan,
            seconds=interval.seconds,
            audio_hours=clock.audio_seconds / 3600,
            waiting=interval.waiting,
            skipped_updates=self._non_finite.total,
            unreadable_clips=len(self._unreadable.found),
            summary=self.task.summary(train, validation),
        )

    def _save(self, *, inside_epoch: bool) -> None:
        """Names the checkpoint by epoch at the end of an epoch, by epoch and step within one."""
        epoch = self.clock.epoch if inside_epoch else self.clock.epoch - 1
        path = self.parts.checkpoints.save(self.state, epoch=epoch, step=self.clock.step if inside_epoch else None)
        self.report.detail(f"saved {path.name}")
