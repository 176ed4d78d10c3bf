"""Conformer blocks (Gulati et al. 2020). B batch, T frames, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.modules.dropout import Dropout
from sjepa.modules.transformer import Attention, FeedForward, TransformerShape, init_linear
from sjepa.tokenizer.modules.lengths import Real, real_steps


@dataclass(frozen=True)
class ConformerShape:
    """Sizes and dropout rate of one block."""

    width: int
    num_heads: int
    kernel: int = 31
    dropout: float = 0.1

    @property
    def transformer(self) -> TransformerShape:
        rate = self.dropout
        return TransformerShape(self.width, self.num_heads, 4 * self.width, rate, rate, rate)


class ConformerConvolution(nn.Module):
    """Linear, GLU, depthwise convolution, group norm over real frames, SiLU, Linear."""

    def __init__(self, shape: ConformerShape) -> None:
        super().__init__()
        width = shape.width
        self.layer_norm = nn.LayerNorm(width)
        self.inner = init_linear(nn.Linear(width, 2 * width), width)
        self.depthwise = nn.Conv1d(width, width, shape.kernel, padding=shape.kernel // 2, groups=width, bias=False)
        nn.init.trunc_normal_(self.depthwise.weight, std=shape.kernel**-0.5)
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.output = init_linear(nn.Linear(width, width), width)

    def forward(self, x_BTD: Tensor, real: Real) -> Tensor:
        inner_BDT = F.glu(self.inner(self.layer_norm(x_BTD)), dim=-1).transpose(1, 2)
        mixed_BDT = self.depthwise(real.keep(inner_BDT))[..., : x_BTD.shape[1]].float()
        mean_B11, variance_B11 = real.moments(mixed_BDT)
        normal_BTD = ((mixed_BDT - mean_B11) * torch.rsqrt(variance_B11 + 1e-5)).transpose(1, 2)
        normal_BTD = F.silu(normal_BTD * self.norm_weight + self.norm_bias)
        return self.output(normal_BTD.to(x_BTD.dtype))  # type: ignore[no-any-return]


class ConformerBlock(nn.Module):
    """Half a feed-forward block, attention, convolution, half a feed-forward block, LayerNorm."""

    def __init__(self, shape: ConformerShape) -> None:
        super().__init__()
        width = shape.width
        self.first_norm, self.attention_norm, self.second_norm, self.final_norm = (
            nn.LayerNorm(width) for _ in range(4)
        )
        self.first_ffn, self.second_ffn = FeedForward(shape.transformer), FeedForward(shape.transformer)
        self.attention = Attention(shape.transformer)
        self.convolution = ConformerConvolution(shape)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x_BTD: Tensor, length_B: Tensor | None) -> Tensor:
        real = real_steps(length_B, x_BTD.transpose(1, 2))
        real_BT = None if real.mask_B1T is None else real.mask_B1T[:, 0] > 0
        x_BTD = x_BTD + 0.5 * self.dropout(self.first_ffn(self.first_norm(x_BTD)))
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), real_BT))
        x_BTD = x_BTD + self.dropout(self.convolution(x_BTD, real))
        x_BTD = x_BTD + 0.5 * self.dropout(self.second_ffn(self.second_norm(x_BTD)))
        return self.final_norm(x_BTD)  # type: ignore[no-any-return]
