"""Metrics of stage 2: losses, weighted by seconds of audio and accumulated on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sjepa.training.figures import Figure

FIGURES = (
    Figure(
        name="mel",
        title="Mel distance",
        axis="mean |Δ ln| of 80 bands",
        better="lower",
        shown=".3f",
        from_zero=True,
    ),
    Figure(name="spectral", title="Multi-resolution STFT loss", axis="|Δ| + |Δ ln|", shown=".3f", from_zero=True),
    Figure(name="waveform", title="Waveform error", axis="mean |Δ|", shown=".4f", from_zero=True),
    Figure(name="adversarial", title="Adversarial loss of the decoder", axis="sum of squares", shown=".3f"),
    Figure(name="features", title="Feature matching", axis="mean |Δ|, summed", shown=".3f"),
    Figure(name="judges", title="Loss of the discriminators", axis="sum of squares", shown=".3f"),
)
RECONSTRUCTION = ("mel", "spectral", "waveform")
ADVERSARIAL = ("adversarial", "features", "judges")


class LossSums:
    """Sums of losses times samples, and of samples, by name."""

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, len(RECONSTRUCTION + ADVERSARIAL), dtype=wide, device=device)

    @torch.no_grad()
    def add(self, losses: Mapping[str, Tensor], samples: int) -> None:
        for number, name in enumerate(RECONSTRUCTION + ADVERSARIAL):
            if name in losses:
                self._sums[0, number] += losses[name].detach().to(self._sums) * samples
                self._sums[1, number] += samples

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The raw sums, to be all-reduced."""
        return (self._sums,)

    def merge(self, other: LossSums) -> None:
        self._sums += other._sums

    def reset(self) -> None:
        self._sums.zero_()

    def read(self) -> dict[str, float]:
        """The means so far; without audio NaN, and 0 of adversarial losses, which begin late.
        Synchronises with the device."""
        totals, samples = self._sums.tolist()
        none = [math.nan] * len(RECONSTRUCTION) + [0.0] * len(ADVERSARIAL)
        values = (total / count if count else zero for total, count, zero in zip(totals, samples, none, strict=True))
        return dict(zip(RECONSTRUCTION + ADVERSARIAL, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
