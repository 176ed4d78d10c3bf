"""The loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sjepa.config.schedule import Stage
from sjepa.dataset.batch import Batch
from sjepa.metrics import MetricSums
from sjepa.training.best import Best
from sjepa.training.checkpoint import Stateful
from sjepa.training.clock import Clock, Interval
from sjepa.training.collapse import FEWEST_FRAMES, CollapseAlarm, collapse_signs
from sjepa.training.health import News, NonFiniteUpdates, RunStopped, UnreadableClips
from sjepa.training.lr_schedule import learning_rate
from sjepa.training.optimizer import set_learning_rate
from sjepa.training.parts import Interrupted, Parts, Plan
from sjepa.training.report import EpochResult, Report, StepFigures
from sjepa.training.step import Update, optimiser_update
from sjepa.training.transition import moments_by_name, renew_head
from sjepa.training.validation import Validation, validate

STATE = (
    "data", "model", "optimizer", "targets", "clock", "best", "alarm",
    "epoch_sums", "recent_sums", "non_finite", "unreadable", "epoch",
)  # fmt: skip


class Trainer:
    """Runs epochs from wherever the clock stands to the schedule's end."""

    def __init__(
        self, parts: Parts, plan: Plan, best: Best, alarm: CollapseAlarm, report: Report, *, stage: Stage
    ) -> None:
        """`stage` is the one that `parts` were made for."""
        self.parts, self.plan, self.best, self.report = parts, plan, best, report
        self.clock = Clock(entered={stage.name: stage.start_step}, per_update=plan.batches_per_update)
        self.stop_signal: int | None = None  # this process was asked to stop
        self._stage, self._alarm, self._ranks = stage, alarm, parts.engine.ranks
        self._epoch_sums, self._recent_sums = (MetricSums(stage.num_clusters, parts.engine.device) for _ in range(2))
        self._non_finite = NonFiniteUpdates()
        self._unreadable = UnreadableClips(parts.train.num_clips)
        self._epoch, self._recent = Interval(), Interval()

    @property
    def stage(self) -> Stage:
        """The stage that the run is in."""
        return self._stage

    @property
    def state(self) -> dict[str, Stateful]:
        """Everything that a run needs to go on, by the names in `STATE`."""
        parts = self.parts
        values = (
            parts.fingerprint, parts.network, parts.optimizer, parts.targets, self.clock, self.best, self._alarm,
            self._epoch_sums, self._recent_sums, self._non_finite, self._unreadable, self._epoch,
        )  # fmt: skip
        return dict(zip(STATE, values, strict=True))

    def run(self) -> None:
        """Trains to the end of the schedule. Raises Interrupted or RunStopped with the state saved."""
        while not self._finished or self.clock.batch > 0:  # an epoch that was begun is also ended
            self._start_epoch()
            self._train_epoch()
            self._end_epoch()
            if self._finished:
                break
        self._non_finite.check_end()

    @property
    def _finished(self) -> bool:
        return self.clock.step >= self.plan.schedule.total_steps

    def _train_epoch(self) -> None:
        if self._finished:
            return
        for window in self._windows():
            self._enter_stage_if_due()
            self._renew_targets_if_due()
            self._choose_layer_if_due()
            update, rate = self._update(window)
            self._move_targets(update)
            self._follow_up(update, rate, window)
            if self._finished:
                return

    def _enter_stage_if_due(self) -> None:
        stage, old = self.plan.schedule.at(self.clock.step), self._stage
        if stage.name != old.name:
            if stage.phase != old.phase:
                self._change_phase(stage)
            self.report.note(f"step {self.clock.step}: {stage.name} starts")
            self.clock.entered[stage.name] = self.clock.step
        self._stage = stage

    def _change_phase(self, stage: Stage) -> None:
        """From the targets of one phase to those of the next. What the old one reached is safe before."""
        if self.clock.batch > 0:  # inside an epoch: no validation or checkpoint came just before
            self._keep_weights(self._validate())
            self.parts.model.train()
            self._save(inside_epoch=True)
        self.report.note(f"step {self.clock.step}: fitting the targets of {stage.name}")
        targets = self.parts.maker.fitted(stage, self.parts.network, is_trained=True, pause=self._stop_if_asked)
        self.parts.weights.close_phase(self._stage.phase, stays_best=self.best.outlives_phases)
        self.parts = replace(self.parts, targets=targets)
        self._renew_head(stage.num_clusters)

    def _renew_targets_if_due(self) -> None:
        """Targets that were held still: a new copy of the encoder, before an update that will use it."""
        targets, step = self.parts.targets, self.clock.step
        if targets.renewal_due(step - self._stage.phase_start_step):
            self.report.note(f"step {step}: the next round of {self._stage.name}")
            targets.renew(self.parts.network.encoder)
            self._refit()

    def _choose_layer_if_due(self) -> None:
        """The layer that targets come from, before an update that will use it."""
        targets, maker, step = self.parts.targets, self.parts.maker, self.clock.step - self._stage.phase_start_step
        if not targets.layer_check_due(step) or not maker.choose_layer(targets):
            return
        self.report.note(f"step {self.clock.step}: targets come from layer {targets.layer} now")
        self.best.restart()  # other targets: their KL does not compare
        if maker.refit_on_switch:
            self._refit()
        else:
            maker.measure_speakers(targets)

    def _refit(self) -> None:
        self.parts.maker.refit(self.parts.targets, self._stage, self.parts.network)
        self._renew_head(self._stage.num_clusters)

    def _renew_head(self, num_clusters: int) -> None:
        """The components mean something else now: a new head, and figures that start anew."""
        network, moments = self.parts.network.in_one_piece(), moments_by_name(self.parts.network, self.parts.optimizer)
        self.parts = parts = replace(self.parts, network=network, model=None, optimizer=None)
        engine, seed, build = parts.engine, parts.settings.seed, parts.build_optimizer
        network, model, optimizer = renew_head(engine, network, moments, build, num_clusters=num_clusters, seed=seed)
        model.train()
        self.parts = replace(parts, network=network, model=model, optimizer=optimizer)
        self.best.restart()
        self._epoch_sums, self._recent_sums = (MetricSums(num_clusters, engine.device) for _ in range(2))
        self._recent = Interval()

    def _stop_if_asked(self) -> None:
        """Inside work that takes long and changes nothing until it is done."""
        if self._ranks.any(self.stop_signal is not None):
            raise Interrupted(max(number or 0 for number in self._ranks.each(self.stop_signal)))

    def _save_if_stopped(self) -> None:
        """Inside work that comes again if the epoch's end does."""
        try:
            self._stop_if_asked()
        except Interrupted:
            self._save(inside_epoch=True)
            raise

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
        schedule, per_update = self.plan.schedule, self.plan.batches_per_update
        first_step = self.clock.step - self.clock.batch // per_update
        augment = [
            schedule.at(first_step + number // per_update).augment for number in range(self.parts.train.num_batches)
        ]
        batches = self.parts.train.epoch(self.clock.epoch, first_batch=self.clock.batch, augment=augment)
        while True:
            asked = time.perf_counter()
            window = [batch for _, batch in zip(range(self.plan.grad_accum), batches, strict=False)]
            for interval in (self._epoch, self._recent):
                interval.waited += time.perf_counter() - asked
            if not window:
                return
            yield window

    def _rate(self, step: int) -> float:
        plan = self.plan
        return learning_rate(plan.schedule, step, kind=plan.lr_kind, min_ratio=plan.lr_min_ratio)

    def _update(self, window: list[Batch]) -> tuple[Update, float]:
        rate, parts = self._rate(self.clock.step), self.parts
        set_learning_rate(parts.optimizer, rate)
        update = optimiser_update(
            parts.engine,
            parts.model,
            parts.optimizer,
            parts.targets,
            window,
            step=self.clock.step,
            stage=self._stage,
            settings=parts.settings,
            sums=self._recent_sums,
            news=self.stop_signal is not None or any(batch.failures for batch in window),
        )
        self._epoch.gradient_norm += update.gradient_norm if update.finite else 0.0
        self._epoch.updates += update.finite
        left, seconds = parts.train.num_batches - self.clock.batch, update.samples / parts.train.sample_rate
        self.clock.tick(batches=min(self.plan.batches_per_update, left), audio_seconds=seconds)
        self._epoch.samples += update.samples
        self._recent.samples += update.samples
        self._recent.updates += 1
        return update, rate

    def _move_targets(self, update: Update) -> None:
        """Lets targets that follow the encoder follow it. The clock has already ticked."""
        if update.made:
            step = self.clock.step - 1 - self._stage.phase_start_step
            self.parts.targets.after_update(self.parts.network.encoder, step, self._ranks)

    def _follow_up(self, update: Update, rate: float, window: list[Batch]) -> None:
        clock = self.clock
        self.report.updated(clock)
        stop_signal = self._watch(update, window)
        if clock.step % self.plan.log_every == 0 or clock.step == self.plan.schedule.total_steps:
            self._log(update, rate)
        if stop_signal is not None:
            self._save(inside_epoch=True)
            raise Interrupted(stop_signal)
        if self.plan.save_every_steps and clock.step % self.plan.save_every_steps == 0:
            self._save(inside_epoch=True)

    def _watch(self, update: Update, window: list[Batch]) -> int | None:
        """Names what went wrong in any process; stops the run, state saved, when it goes on doing so. Returns the signal to
        stop if some process got one."""
        failures = tuple(failure for batch in window for failure in batch.failures)
        own = News(self.stop_signal, failures, () if update.finite else update.clips)
        talk = update.news or not update.finite or self._ranks.size == 1  # else a signal of just now waits for the next
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
        metrics, recent = self._recent_sums.read(), self._recent
        sample_rate, steps_left = self.parts.train.sample_rate, self.plan.schedule.total_steps - self.clock.step
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
        validation = self._validate()
        epoch, signs = clock.epoch, self._collapse(validation)
        is_best = self._keep_weights(validation, collapsed=bool(signs))
        self.report.epoch_ended(self._result(validation), is_best=is_best)
        whole = clock.batch >= parts.train.num_batches
        if whole:
            self._epoch_sums.reset()
            clock.next_epoch()
        self._save(inside_epoch=not whole)  # max_steps may end inside an epoch, which more steps would go on with
        self._alarm.check(signs, epoch, self.report)
        self._stop_if_asked()

    def _validate(self) -> Validation:
        parts = self.parts
        return validate(
            parts.engine,
            parts.model,
            parts.network.encoder,
            parts.targets,
            self.report.progress(parts.validation.epoch(0), total=parts.validation.num_rounds, label="validation"),
            visible=self._stage.visible_loss,
            settings=parts.settings,
            warn=self.report.warn,
            pause=self._save_if_stopped,
            judges=parts.judges,
        )

    def _keep_weights(self, validation: Validation, *, collapsed: bool = False) -> bool:
        """Writes the weights; whether they are the best so far, which those of a collapse never are."""
        is_best = not collapsed and self.best.offer(validation.figure(self.best.metric), self.clock.epoch)
        parts = self.parts
        parts.weights.save(parts.network, parts.targets, self.clock, self._stage, validation.metrics, is_best=is_best)
        return is_best

    def _collapse(self, validation: Validation) -> list[str]:
        """Signs of a collapse over the epoch's own frames, or else over those of the validation."""
        clusters, train, spreads = self._stage.num_clusters, self._epoch_sums.read(), validation.spreads
        signs = collapse_signs(train, clusters) if train.frames else []
        return signs or collapse_signs(validation.metrics, clusters, spreads=spreads, ranks=validation.effective_ranks)

    def _result(self, validation: Validation) -> EpochResult:
        clock = self.clock
        return EpochResult(
            epoch=clock.epoch,
            stage=self._stage,
            learning_rate=self._rate(max(0, clock.step - 1)),
            train=self._epoch_sums.read(),
            validation=validation.metrics,
            effective_ranks=validation.effective_ranks,
            spreads=validation.spreads,
            judged=validation.judged,
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
