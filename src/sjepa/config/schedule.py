"""Phases as data: which targets, how many components, which loss and which rate, from which step to which."""

from __future__ import annotations

from dataclasses import dataclass

from sjepa.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the run within which nothing of the method changes. Steps are optimiser steps, `end_step` excluded."""

    name: str
    phase: int
    start_step: int
    end_step: int
    targets: str
    num_clusters: int
    visible_loss: bool
    augment: bool
    peak_lr: float
    warmup_steps: int

    @property
    def steps(self) -> int:
        return self.end_step - self.start_step


@dataclass(frozen=True)
class Schedule:
    """The stages of a run in order, without gaps. [Two-Phase Training]"""

    stages: tuple[Stage, ...]
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)

    def at(self, step: int) -> Stage:
        """The stage that optimiser step `step` (counted from 0) belongs to; the last one from the end on."""
        return next((stage for stage in self.stages if step < stage.end_step), self.stages[-1])

    def warnings(self) -> list[str]:
        return [
            f"{stage.name}: the warm-up of {stage.warmup_steps} steps is longer than the stage ({stage.steps} steps): "
            f"the rate never reaches its peak (scheduler.warmup_steps below 1 is a fraction of the stage)"
            for stage in self.stages
            if stage.warmup_steps > stage.steps
        ]


def plan(config: Config, steps_per_epoch: int) -> Schedule:
    """What the keys of a configuration mean for a training set of `steps_per_epoch` optimiser steps."""
    total = config.train.max_steps or config.train.epochs * steps_per_epoch
    warmup = config.scheduler.warmup_steps
    stage = Stage(
        name="phase 1",
        phase=1,
        start_step=0,
        end_step=total,
        targets="mfcc",
        num_clusters=config.gmm.num_clusters,
        visible_loss=config.train.use_visible_loss,
        augment=config.dataset.augment.enabled,
        peak_lr=config.optimizer.lr,
        warmup_steps=round(warmup * total) if warmup < 1 else int(warmup),
    )
    return Schedule((stage,), steps_per_epoch)
