"""The stages of a run and their learning-rate schedules. Systems subclass `Stage` for their own
settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """The learning rate from `start_step` to `end_step` (excluded): linear warm-up to `peak`, then
    constant, or a cosine that reaches `min_ratio` of the peak at the last step."""

    start_step: int
    end_step: int
    peak: float
    warmup_steps: int
    kind: Literal["cosine", "constant"] = "cosine"
    min_ratio: float = 0.0

    @property
    def steps(self) -> int:
        return self.end_step - self.start_step

    def at(self, step: int) -> float:
        """The rate of optimiser step `step` (counted from 0, over the whole run)."""
        since = step - self.start_step
        if since < self.warmup_steps:
            return self.peak * (since + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        span = max(1, self.steps - 1 - self.warmup_steps)
        progress = min(1.0, (since - self.warmup_steps) / span)
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run with constant training settings. Steps are optimiser steps, `end_step`
    excluded. Metrics are comparable within a phase; `phase_start_step` is its first step."""

    name: str
    phase: int
    start_step: int
    end_step: int
    phase_start_step: int
    augment: bool
    rate: RateCurve

    def describe(self) -> dict[str, str]:
        """System-specific columns of the stage table: name → text."""
        return {}


S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class Schedule(Generic[S]):
    """The stages of a run in order, without gaps."""

    stages: tuple[S, ...]
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)

    def at(self, step: int) -> S:
        """The stage of optimiser step `step` (counted from 0); the last stage beyond the end."""
        return next((stage for stage in self.stages if step < stage.end_step), self.stages[-1])

    def rate(self, step: int) -> float:
        """The learning rate of optimiser step `step`."""
        return self.at(step).rate.at(step)

    def warnings(self) -> list[str]:
        """One line per warm-up that is longer than its learning-rate curve."""
        curves = {stage.rate: stage.name for stage in reversed(self.stages)}
        return [
            f"{name}: the warm-up of {curve.warmup_steps} steps is longer than the {curve.steps} steps it belongs to: "
            f"the rate never reaches its peak (scheduler.warmup_steps below 1 is a fraction)"
            for curve, name in reversed(curves.items())
            if curve.warmup_steps > curve.steps
        ]


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run: its step, and the stages entered so far with their first step. These
    starts are kept when a run is resumed with another length."""

    step: int
    entered: Mapping[str, int]
