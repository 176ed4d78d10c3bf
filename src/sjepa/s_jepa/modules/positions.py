"""Convolutional position embedding with a wide grouped kernel. [Architecture Details]"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sjepa.modules.long_convolution import long_convolution, pays


class ConvPositions(nn.Module):
    """Weight-normalised grouped convolution over time, GELU; with an even kernel the extra last
    frame is dropped."""

    def __init__(self, width: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = parametrizations.weight_norm(conv, name="weight", dim=2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]; padded frames must be zero on entry."""
        if pays(x_BTD, self.conv.kernel_size[0]):
            return F.gelu(long_convolution(x_BTD, self.conv.weight) + self.conv.bias)
        y_BDT = self.conv(x_BTD.transpose(1, 2))[..., : x_BTD.shape[1]]
        return F.gelu(y_BDT).transpose(1, 2)
