"""Snake activation with a learned frequency per channel (Ziyin et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST, _MOST_GAIN = 0.01, 10.0


class Snake(nn.Module):
    """y = x + min(1/α, 10) · sin²(αx), α = softplus(raw) + 0.01, one for each channel of [B, C,
    T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((channels, 1), 0.5413))  # softplus: 1

    def forward(self, x_BCT: Tensor) -> Tensor:
        alpha_C1 = (F.softplus(self.raw) + _LEAST).to(x_BCT.dtype)
        return x_BCT + (1 / alpha_C1).clamp(max=_MOST_GAIN) * torch.sin(alpha_C1 * x_BCT).square()
