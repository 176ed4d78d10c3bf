"""Auxiliary spectral loss on small corpora: log-mel regression.

B batch, S samples, T frames, D width, C log-mel bands of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import given_lengths
from sjepa.features.mel_frontend import MelFrontend
from sjepa.modules.transformer import init_linear


class SpectrumHead(nn.Module):
    """Linear regression from frame features to the log-mel bands, normalised per clip to zero mean
    and unit variance, of the same frame and of those at `offsets` frames from it."""

    def __init__(self, width: int, geometry: FrameGeometry, offsets: Sequence[int] = (0,)) -> None:
        super().__init__()
        self.mel, self.offsets = MelFrontend(statistics="clip", geometry=geometry), tuple(offsets)
        self.output = init_linear(nn.Linear(width, len(self.offsets) * self.mel.num_channels), width)

    def forward(self, frames_BTD: Tensor, waveform_BS: Tensor, num_samples_B: Tensor | None, real_BT: Tensor) -> Tensor:
        """Squared error, averaged over bands and offsets and summed over the frames of `real_BT` (a
        scalar). Frames outside a clip have no error."""
        samples_B = given_lengths(num_samples_B, waveform_BS)
        wanted_BTC = self.mel(waveform_BS, samples_B)
        frames_B, times_T = self.mel.geometry.frames(samples_B), torch.arange(wanted_BTC.shape[1]).to(wanted_BTC.device)
        total = torch.zeros((), device=wanted_BTC.device)
        for offset, found_BTC in zip(
            self.offsets, self.output(frames_BTD).float().chunk(len(self.offsets), -1), strict=True
        ):
            other_T = times_T + offset
            counts_BT = real_BT & (other_T >= 0) & (other_T < frames_B[:, None])
            error_BT = (found_BTC - wanted_BTC[:, other_T.clamp(0, len(times_T) - 1)]).square().mean(-1)
            total = total + torch.where(counts_BT, error_BT, 0.0).sum()
        return total / len(self.offsets)

    def unused(self) -> Tensor:
        """Zero that depends on the weights, to keep them in the graph."""
        return 0.0 * (self.output.weight.sum() + self.output.bias.sum())
