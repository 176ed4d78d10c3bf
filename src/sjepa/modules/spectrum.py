"""Auxiliary spectral loss: warms up a waveform frontend on small corpora by log-mel regression.

B batch, S samples, T frames, D width, C log-mel bands of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import given_lengths
from sjepa.features.mel_frontend import MelFrontend
from sjepa.modules.transformer import init_linear


class SpectrumHead(nn.Module):
    """Linear regression from projected frontend features to the log-mel bands of the same frame,
    normalised per clip to zero mean and unit variance."""

    def __init__(self, width: int, geometry: FrameGeometry) -> None:
        super().__init__()
        self.mel = MelFrontend(statistics="clip", geometry=geometry)
        self.output = init_linear(nn.Linear(width, self.mel.num_channels), width)

    def forward(self, frames_BTD: Tensor, waveform_BS: Tensor, num_samples_B: Tensor | None, real_BT: Tensor) -> Tensor:
        """Squared error, averaged over bands and summed over all real frames (a scalar)."""
        wanted_BTC = self.mel(waveform_BS, given_lengths(num_samples_B, waveform_BS))
        error_BT = (self.output(frames_BTD).float() - wanted_BTC).square().mean(-1)
        return torch.where(real_BT, error_BT, 0.0).sum()

    def unused(self) -> Tensor:
        """Zero that depends on the weights, to keep them in the graph."""
        return 0.0 * (self.output.weight.sum() + self.output.bias.sum())
