"""Metrics of stage 1, accumulated as sums on the device."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sjepa.training.figures import Figure

SKILL = Figure(
    name="skill",
    title="Skill of the masked prediction",
    axis="1 − error / error of interpolation",
    better="higher",
    shown=".3f",
    from_zero=True,
)
FIGURES = (
    Figure(
        name="error",
        title="Masked error",
        axis="share of the variance of the targets",
        shown=".3f",
        from_zero=True,
    ),
    Figure(name="interpolation", label="neighbours interpolated", beside="error", shown=".3f"),
    Figure(name="mean", label="mean of the visible frames", beside="error", shown=".3f"),
    SKILL,
    Figure(
        name="deviation",
        title="Deviation of the targets",
        axis="RMS over dimensions",
        shown=".3f",
        from_zero=True,
    ),
    Figure(
        name="target_rank",
        title="Effective rank of the targets",
        axis="effective rank (2,000 frames)",
        where="validation",
        from_zero=True,
    ),
)


@dataclass(frozen=True)
class Metrics:
    """Squared error at masked frames as a share of the targets' variance: of the predictions, of
    interpolated neighbours and of the clip's visible mean; deviation of the targets (RMS over
    dimensions); number of masked frames. `skill` is comparable while the targets change: smoother
    ones are easier to predict, and to interpolate."""

    error: float
    interpolation: float
    mean: float
    deviation: float
    frames: int

    def named(self) -> dict[str, float]:
        values = {name: float(value) for name, value in asdict(self).items() if name != "frames"}
        return {**values, "skill": self.skill}

    @property
    def skill(self) -> float:
        """1 for perfect predictions, 0 for those no better than interpolation."""
        return 1 - self.error / self.interpolation if self.interpolation else math.nan


class ErrorSums:
    """Sums over masked frames, of squares averaged over dimensions."""

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(7, dtype=wide, device=device)

    @torch.no_grad()
    def add(self, targets_ND: Tensor, predicted_ND: Tensor, interpolated_ND: Tensor, mean_ND: Tensor) -> None:
        """Adds masked frames, in normalised units (the targets' mean is 0)."""
        squares = [
            (other_ND - targets_ND).square().mean(1).sum() for other_ND in (predicted_ND, interpolated_ND, mean_ND)
        ]
        values = torch.stack([*squares, targets_ND.square().mean(1).sum()])
        self._sums[:4] += values.to(self._sums.dtype)
        self._sums[4] += len(targets_ND)

    def add_deviation(self, deviation: Tensor) -> None:
        """Adds the deviation of the targets of one update."""
        self._sums[5] += deviation.to(self._sums.dtype)
        self._sums[6] += 1

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The raw sums, to be all-reduced."""
        return (self._sums,)

    def merge(self, other: ErrorSums) -> None:
        self._sums += other._sums

    def reset(self) -> None:
        self._sums.zero_()

    def read(self) -> Metrics:
        """The means so far (NaN without frames). Synchronises with the device."""
        error, interpolation, mean, variance, frames, deviation, updates = self._sums.tolist()
        scale = 1 / variance if variance else math.nan
        spread = deviation / updates if updates else math.nan
        return Metrics(error * scale, interpolation * scale, mean * scale, spread, int(frames))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
