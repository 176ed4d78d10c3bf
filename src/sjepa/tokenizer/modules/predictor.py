"""Predicts the target's features of masked frames from those of visible ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.modules.transformer import init_linear
from sjepa.tokenizer.modules.conformer import ConformerBlock, ConformerShape


class TokenPredictor(nn.Module):
    """A learned token at masked frames; Linear, GELU, Conformer, Linear, GELU, Conformer, Linear.
    B batch, T frames, D width of the features."""

    def __init__(self, width: int, shape: ConformerShape) -> None:
        """`width` of the features, `shape` of the inner blocks."""
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.first = init_linear(nn.Linear(width, shape.width), width)
        self.between = init_linear(nn.Linear(shape.width, shape.width), shape.width)
        self.blocks = nn.ModuleList(ConformerBlock(shape) for _ in range(2))
        self.output = init_linear(nn.Linear(shape.width, width), shape.width)

    def forward(self, features_BTD: Tensor, mask_BT: Tensor, length_B: Tensor | None) -> Tensor:
        """[B, T, D]. `length_B`: real frames of each clip; None: all."""
        x_BTD = torch.where(mask_BT[..., None], self.mask_token.to(features_BTD.dtype), features_BTD)
        for linear, block in zip((self.first, self.between), self.blocks, strict=True):
            x_BTD = block(F.gelu(linear(x_BTD)), length_B)
        return self.output(x_BTD)  # type: ignore[no-any-return]
