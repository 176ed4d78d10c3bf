"""Gaussian adaptive attention: a gate over time that follows a learned mixture of Gaussians around
the clip's own mean. B batch, C channels, T time, K Gaussians."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.tokenizer.modules.lengths import Real

_LEAST_WIDTH, _SMALL = 1e-3, 1e-8


class GaussianAttention(nn.Module):
    """y = x · (1 + α · gate), gate the mean over k of exp(−z_k²/2) / (σ_k √2π) with z_k = (a − μ −
    δ_k) / (s σ_k); a is a projection of x to one channel, μ and s its mean and deviation over the
    real time of a clip. δ_k, σ_k and α are learned.

    The offsets δ_k start spread over −1…1: equal ones would receive equal gradients for ever.
    """

    def __init__(self, channels: int, num_gaussians: int = 4, strength: float = 0.05) -> None:
        super().__init__()
        self.projection = nn.Conv1d(channels, 1, 1)
        self.offset = nn.Parameter(torch.linspace(-1, 1, num_gaussians) if num_gaussians > 1 else torch.zeros(1))
        self.raw_width = nn.Parameter(torch.full((num_gaussians,), math.log(0.5)))
        self.strength = nn.Parameter(torch.tensor([strength]))

    def gate(self, x_BCT: Tensor, real: Real) -> Tensor:
        """[B, 1, T] float32, computed in float32."""
        with torch.autocast(x_BCT.device.type, enabled=False):
            weight, bias = self.projection.weight.float(), self.projection.bias
            a_B1T = F.conv1d(x_BCT.float(), weight, None if bias is None else bias.float())
            mean_B11, variance_B11 = real.moments(a_B1T)
            deviation_B11 = (variance_B11 + _SMALL).sqrt()
            width_K1 = (F.softplus(self.raw_width) + _LEAST_WIDTH).float()[:, None]
            offset_K1 = self.offset.float()[:, None]
            z_BKT = (a_B1T - mean_B11 - offset_K1) / (deviation_B11 * width_K1 + _SMALL)
            log_density_BKT = -0.5 * z_BKT.square() - width_K1.log() - 0.5 * math.log(2 * math.pi)
            return torch.logsumexp(log_density_BKT - math.log(len(self.offset)), dim=1, keepdim=True).exp()

    def forward(self, x_BCT: Tensor, real: Real) -> Tensor:
        return x_BCT * (1 + self.strength * self.gate(x_BCT, real)).to(x_BCT.dtype)
