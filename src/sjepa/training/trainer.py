"""The loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from sjepa.config.schedule import Schedule, Stage
from sjepa.core.distributed import Engine
from sjepa.dataset.batch import Batch
from sjepa.dataset.loader import Loader
from sjepa.metrics import MetricSums
from sjepa.model import SJEPA
from sjepa.targets.base import Targets
from sjepa.training.best import Best
from sjepa.training.checkpoint import Checkpoints, Stateful
from sjepa.training.clock import Clock, Interval
from sjepa.training.collapse import FEWEST_FRAMES, CollapseAlarm, collapse_signs
from sjepa.training.health import NonFiniteUpdates, RunStopped, UnreadableClips
from sjepa.training.keeper import WeightsFolder
from sjepa.training.lr_schedule import learning_rate
from sjepa.training.optimizer import set_learning_rate
from sjepa.training.report import EpochResult, Report, StepFigures
from sjepa.training.step import StepSettings, Update, optimiser_update
from sjepa.training.transition import TargetMaker, renew_head
from sjepa.training.validation import Validation, validate


@dataclass(frozen=True)
class Plan:
    """The run's numbers: when what is due."""

    schedule: Schedule
    grad_accum: int
    log_every: int
    save_every_steps: int
    lr_kind: Literal["cosine", "constant"]
    lr_min_ratio: float


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `model` is `network` as the engine wrapped it; `build_optimizer` makes one for a network."""

    engine: Engine
    network: SJEPA
    model: Any
    optimizer: Any
    build_optimizer: Callable[[nn.Module], Any]
    targets: Targets
    maker: TargetMaker
    settings: StepSettings
    train: Loader
    validation: Loader
    checkpoints: Checkpoints
    fingerprint: Stateful
    weights: WeightsFolder


class Interrupted(Exception):
    """A signal asked the run to stop; its state was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Trainer:
    """Runs epochs from wherever the clock stands to the schedule's end."""

    def __init__(
        self, parts: Parts, plan: Plan, best: Best, alarm: CollapseAlarm, report: Report, *, stage: Stage
    ) -> None:
        """`stage` is the one that `parts` were made for."""
        self.parts, self.plan, self.best, self.report = parts, plan, best, report
        self.clock = Clock(entered={stage.name: stage.start_step})
        self.stop_signal: int | None = None
        self._stage, self._alarm = stage, alarm
        self._epoch_sums = MetricSums(stage.num_clusters, parts.engine.device)
        self._recent_sums = MetricSums(stage.num_clusters, parts.engine.device)
        self._non_finite = NonFiniteUpdates()
        self._unreadable = UnreadableClips(len(parts.train.dataset))
        self._epoch, self._recent = Interval(), Interval()

    @property
    def stage(self) -> Stage:
        """The stage that the run is in."""
        return self._stage

    @property
    def state(self) -> dict[str, Stateful]:
        """Everything that a run needs to go on, by name."""
        parts = self.parts
        return {
            "data": parts.fingerprint,
            "model": parts.network,
            "optimizer": parts.optimizer,
            "targets": parts.targets,
            "clock": self.clock,
            "best": self.best,
            "alarm": self._alarm,
            "epoch_sums": self._epoch_sums,
            "recent_sums": self._recent_sums,
            "non_finite": self._non_finite,
            "unreadable": self._unreadable,
            "epoch": self._epoch,
        }

    def run(self) -> None:
        """Trains to the end of the schedule. Raises Interrupted or RunStopped with the state saved."""
        while not self._finished or self.clock.batch > 0:  # an epoch that was begun is also ended
            self._start_epoch()
            self._train_epoch()
            self._end_epoch()
            if self._finished:
                return

    @property
    def _finished(self) -> bool:
        return self.clock.step >= self.plan.schedule.total_steps

    def _train_epoch(self) -> None:
        if self._finished:
            return
        for window in self._windows():
            self._enter_stage_if_due()
            update, rate = self._update(window)
            self._move_targets(update)
            self._follow_up(update, rate, window)
            if self._finished:
                return

    def _enter_stage_if_due(self) -> None:
        stage, old = self.plan.schedule.at(self.clock.step), self._stage
        if stage.name == old.name:
            self._stage = stage
            return
        self.report.note(f"step {self.clock.step}: {stage.name} starts")
        if stage.phase != old.phase:
            self.parts.weights.close_phase(old.phase)
            self.best.restart()
        if stage.targets != old.targets:
            self._renew_targets(stage)
        self._stage = stage
        self.clock.entered[stage.name] = self.clock.step

    def _renew_targets(self, stage: Stage) -> None:
        """New targets, whose components mean something else: a new head too, and figures that start anew."""
        parts, engine = self.parts, self.parts.engine
        targets = parts.maker.fitted(stage, parts.network.encoder)
        renewed = renew_head(
            parts.network,
            parts.optimizer,
            parts.build_optimizer,
            num_clusters=stage.num_clusters,
            seed=parts.settings.seed,
        )
        model, optimizer = engine.setup(parts.network, renewed)
        model.train()
        self.parts = replace(parts, targets=targets, model=model, optimizer=optimizer)
        self._epoch_sums = MetricSums(stage.num_clusters, engine.device)
        self._recent_sums = MetricSums(stage.num_clusters, engine.device)
        self._recent = Interval()

    def _start_epoch(self) -> None:
        self.parts.model.train()
        self._recent = Interval()
        self._epoch.restart()
        if self.clock.batch == 0:
            self._epoch = Interval()
            self._unreadable.reset()
        self.report.epoch_started(self.clock, self.plan.schedule.steps_per_epoch)

    def _windows(self) -> Iterator[list[Batch]]:
        """The micro-batches of one update each, from the clock's position on; the epoch's last may be fewer."""
        schedule, accumulate = self.plan.schedule, self.plan.grad_accum
        first_step = self.clock.step - self.clock.batch // accumulate
        augment = [
            schedule.at(first_step + number // accumulate).augment for number in range(self.parts.train.num_batches)
        ]
        batches = self.parts.train.epoch(self.clock.epoch, first_batch=self.clock.batch, augment=augment)
        while True:
            asked = time.perf_counter()
            window = [batch for _, batch in zip(range(accumulate), batches, strict=False)]
            waited = time.perf_counter() - asked
            self._epoch.waited += waited
            self._recent.waited += waited
            if not window:
                return
            yield window

    def _update(self, window: list[Batch]) -> tuple[Update, float]:
        rate = learning_rate(
            self.plan.schedule, self.clock.step, kind=self.plan.lr_kind, min_ratio=self.plan.lr_min_ratio
        )
        set_learning_rate(self.parts.optimizer, rate)
        update = optimiser_update(
            self.parts.engine,
            self.parts.model,
            self.parts.optimizer,
            self.parts.targets,
            [batch for batch in window if batch.num_samples],
            step=self.clock.step,
            stage=self._stage,
            settings=self.parts.settings,
            sums=self._recent_sums,
        )
        self._epoch.gradient_norm += update.gradient_norm if update.finite else 0.0
        self._epoch.updates += update.finite
        audio_seconds = update.samples / self.parts.network.encoder.geometry.sample_rate
        self.clock.tick(batches=len(window), audio_seconds=audio_seconds)
        self._epoch.samples += update.samples
        self._recent.samples += update.samples
        self._recent.updates += 1
        return update, rate

    def _move_targets(self, update: Update) -> None:
        """Lets targets that follow the encoder follow it. The clock has already ticked: `done` updates of the phase."""
        targets, network = self.parts.targets, self.parts.network
        done = self.clock.step - self._stage.phase_start_step
        if update.finite and update.samples:
            targets.after_update(network.encoder, done - 1)
        if targets.layer_check_due(done) and self.parts.maker.choose_layer(targets):
            self.report.note(f"step {self.clock.step}: targets come from layer {targets.layer} now")

    def _follow_up(self, update: Update, rate: float, window: list[Batch]) -> None:
        clock = self.clock
        self.report.updated(clock)
        self._watch(update, window)
        if clock.step % self.plan.log_every == 0 or clock.step == self.plan.schedule.total_steps:
            self._log(update, rate)
        if self.stop_signal is not None:
            self._save(inside_epoch=True)
            raise Interrupted(self.stop_signal)
        if self.plan.save_every_steps and clock.step % self.plan.save_every_steps == 0:
            self._save(inside_epoch=True)

    def _watch(self, update: Update, window: list[Batch]) -> None:
        """Names what went wrong; stops the run, state saved, when it goes on doing so."""
        failures = [failure for batch in window for failure in batch.failures]
        for failure in failures:
            self.report.warn(f"skipped {failure.name}: {failure.reason}")
        self._unreadable.saw(failures)
        self._non_finite.saw(update.finite)
        if not update.finite:
            self.report.warn(
                f"step {self.clock.step}: loss or gradient not finite, left out: {', '.join(update.clips)}"
            )
        try:
            self._non_finite.check()
            self._unreadable.check()
        except Exception:
            self._save(inside_epoch=True)
            raise

    def _log(self, update: Update, rate: float) -> None:
        metrics, recent = self._recent_sums.read(), self._recent
        sample_rate = self.parts.network.encoder.geometry.sample_rate
        steps_left = self.plan.schedule.total_steps - self.clock.step
        self.report.figures(
            self.clock,
            StepFigures(
                metrics,
                rate,
                update.gradient_norm,
                recent.samples / sample_rate / max(recent.seconds, 1e-9),
                recent.waiting,
                steps_left * recent.seconds / recent.updates,
            ),
        )
        if metrics.frames >= FEWEST_FRAMES:
            self._sound_alarm(collapse_signs(metrics, self._stage.num_clusters))
        self._epoch_sums.merge(self._recent_sums)
        self._recent_sums.reset()
        self._recent = Interval()

    def _sound_alarm(self, signs: Sequence[str]) -> None:
        try:
            self._alarm.check(signs, self.clock.epoch, self.report)
        except RunStopped:
            self._save(inside_epoch=True)
            raise

    def _end_epoch(self) -> None:
        clock, parts = self.clock, self.parts
        self._epoch_sums.merge(self._recent_sums)
        self._recent_sums.reset()
        validation = validate(
            parts.engine,
            parts.model,
            parts.network.encoder,
            parts.targets,
            self.report.progress(parts.validation.epoch(0), total=parts.validation.num_batches, label="validation"),
            visible=self._stage.visible_loss,
            settings=parts.settings,
            warn=self.report.warn,
        )
        is_best = self.best.offer(validation.metrics, clock.epoch)
        parts.weights.save(parts.targets, clock, self._stage, validation.metrics, is_best=is_best)
        self.report.epoch_ended(self._result(validation), is_best=is_best)
        epoch, signs = clock.epoch, self._collapse(validation)
        whole = clock.batch >= parts.train.num_batches
        if whole:
            self._epoch_sums.reset()
            clock.next_epoch()
        self._save(inside_epoch=not whole)  # max_steps may end inside an epoch, which more steps would go on with
        self._alarm.check(signs, epoch, self.report)
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal)

    def _collapse(self, validation: Validation) -> list[str]:
        """Signs of a collapse over the epoch's own frames, or else over those of the validation."""
        clusters, train = self._stage.num_clusters, self._epoch_sums.read()
        signs = collapse_signs(train, clusters) if train.frames else []
        return signs or collapse_signs(
            validation.metrics, clusters, spreads=validation.spreads, ranks=validation.effective_ranks
        )

    def _result(self, validation: Validation) -> EpochResult:
        clock, plan = self.clock, self.plan
        return EpochResult(
            epoch=clock.epoch,
            stage=self._stage,
            learning_rate=learning_rate(
                plan.schedule, max(0, clock.step - 1), kind=plan.lr_kind, min_ratio=plan.lr_min_ratio
            ),
            train=self._epoch_sums.read(),
            validation=validation.metrics,
            effective_ranks=validation.effective_ranks,
            spreads=validation.spreads,
            targets=self.parts.targets.figures(),
            gradient_norm=self._epoch.gradient_norm / self._epoch.updates if self._epoch.updates else math.nan,
            seconds=self._epoch.seconds,
            audio_hours=clock.audio_seconds / 3600,
            waiting=self._epoch.waiting,
            skipped_updates=self._non_finite.total,
            unreadable_clips=len(self._unreadable.found),
        )

    def _save(self, *, inside_epoch: bool) -> None:
        """A checkpoint of an epoch that ended is named after it; one inside an epoch also by its step."""
        epoch = self.clock.epoch if inside_epoch else self.clock.epoch - 1
        path = self.parts.checkpoints.save(self.state, epoch=epoch, step=self.clock.step if inside_epoch else None)
        self.report.detail(f"saved {path.name}")
