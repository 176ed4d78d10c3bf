"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

from sjepa.config.schedule import Schedule


def learning_rate(schedule: Schedule, step: int, *, kind: Literal["cosine", "constant"], min_ratio: float) -> float:
    """The rate of optimiser step `step` (from 0): linear warm-up to the curve's peak, then constant, or a cosine that
    reaches `min_ratio` of the peak at the curve's last step."""
    curve = schedule.at(step).rate
    since = step - curve.start_step
    if since < curve.warmup_steps:
        return curve.peak * (since + 1) / curve.warmup_steps
    if kind == "constant":
        return curve.peak
    span = max(1, curve.steps - 1 - curve.warmup_steps)
    progress = min(1.0, (since - curve.warmup_steps) / span)
    return curve.peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
