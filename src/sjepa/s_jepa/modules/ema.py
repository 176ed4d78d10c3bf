"""The EMA encoder: a moving average of the trained encoder, source of the phase-2 targets.
[Online GMM Updates]"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.sharding import in_one_piece, whole
from sjepa.s_jepa.modules.encoder import Encoder, EncoderOutput


class EMAEncoder(nn.Module):
    """Starts as an unsharded copy. Always in evaluation mode, on unmasked input, without
    gradient."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        source = in_one_piece(encoder, lambda: Encoder(encoder.shape))
        self.average = copy.deepcopy(source).requires_grad_(False).eval()

    @property
    def geometry(self) -> FrameGeometry:
        return self.average.geometry

    def train(self, mode: bool = True) -> EMAEncoder:
        """Ignores `mode`: always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor | None, *, up_to: int | None = None) -> EncoderOutput:
        """Features of the layers up to index `up_to` (default: all)."""
        return self.average(waveform_BS, num_samples_B, up_to=up_to)  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self, encoder: Encoder, decay: float) -> None:
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
