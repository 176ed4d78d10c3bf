"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

from sjepa.config.schedule import Schedule


def learning_rate(schedule: Schedule, step: int, *, kind: Literal["cosine", "constant"], min_ratio: float) -> float:
    """The rate of optimiser step `step` (from 0): linear warm-up to the stage's peak, then constant, or a cosine that
    reaches `min_ratio` of the peak at the stage's last step."""
    stage = schedule.at(step)
    since = step - stage.start_step
    if since < stage.warmup_steps:
        return stage.peak_lr * (since + 1) / stage.warmup_steps
    if kind == "constant":
        return stage.peak_lr
    span = max(1, stage.steps - 1 - stage.warmup_steps)
    progress = min(1.0, (since - stage.warmup_steps) / span)
    return stage.peak_lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
