"""The EMA encoder: a moving average of the trained encoder, source of targets. [Online GMM
Updates]"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.sharding import in_one_piece, whole


class EMAEncoder(nn.Module):
    """Starts as an unsharded copy. Always in evaluation mode, on unmasked input, without
    gradient."""

    def __init__(self, encoder: Any) -> None:
        """`encoder`: a module made from its `shape` alone, with a `geometry`."""
        super().__init__()
        source = in_one_piece(encoder, lambda: type(encoder)(encoder.shape))
        self.average: Any = copy.deepcopy(source).requires_grad_(False).eval()

    @property
    def geometry(self) -> FrameGeometry:
        return self.average.geometry  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> EMAEncoder:
        """Ignores `mode`: always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor | None, **options: Any) -> Any:
        return self.average(waveform_BS, num_samples_B, **options)

    @torch.no_grad()
    def follow(self, encoder: nn.Module, decay: float) -> None:
        """EMA update: average ← decay · average + (1 − decay) · encoder; buffers are copied."""
        own: list[Tensor] = list(self.average.parameters())
        new: list[Tensor] = whole(list(encoder.parameters()))
        torch._foreach_lerp_(own, new, 1.0 - decay)
        for target, source in zip(self.average.buffers(), encoder.buffers(), strict=True):
            target.copy_(source)


def switched_decay(step: int, *, fast: float, slow: float, switch_every: int) -> float:
    """EMA decay at step `step` of phase 2 (from 0): alternates between `fast` (first) and
    `slow`."""
    return slow if (step // switch_every) % 2 else fast
