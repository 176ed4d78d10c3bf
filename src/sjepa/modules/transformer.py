"""Post-norm transformer layers. B batch, T frames, D width, H heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.modules.attention_dropout import attention_with_dropout
from sjepa.modules.dropout import Dropout


@dataclass(frozen=True)
class TransformerShape:
    """Sizes and dropout rates of one layer."""

    width: int
    num_heads: int
    ffn_width: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1


_BASE_WIDTH = 768


def init_linear(linear: nn.Linear, width: int) -> nn.Linear:
    """Weights N(0, 0.02²) and zero bias at width 768, as in HuBERT; the standard deviation scales
    with 1/√width, so that the output variance does not depend on the width."""
    nn.init.normal_(linear.weight, mean=0.0, std=0.02 * math.sqrt(_BASE_WIDTH / width))
    nn.init.zeros_(linear.bias)
    return linear


class Attention(nn.Module):
    """Multi-head self-attention; padded keys are masked."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.num_heads, self.dropout = shape.num_heads, shape.attention_dropout
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            init_linear(nn.Linear(shape.width, shape.width), shape.width) for _ in range(4)
        )

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
        """`real_BT`: True at frames that may be attended to; None: all frames."""
        batch, frames, width = x_BTD.shape
        if torch.is_autocast_enabled(x_BTD.device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))  # once for three products

        def heads(projection: nn.Linear) -> Tensor:  # [B, H, T, D/H]
            return projection(x_BTD).view(batch, frames, self.num_heads, -1).transpose(1, 2)

        query, keys, values = heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        rate = self.dropout if self.training else 0.0
        if rate and x_BTD.device.type == "cpu" and not torch.compiler.is_compiling():
            mixed = attention_with_dropout(query, keys, values, real_BT, rate)
        else:
            seen = None if real_BT is None else real_BT[:, None, None, :]
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.intermediate_dense = init_linear(nn.Linear(shape.width, shape.ffn_width), shape.width)
        self.intermediate_dropout = Dropout(shape.activation_dropout)
        self.output_dense = init_linear(nn.Linear(shape.ffn_width, shape.width), shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output_dense(self.intermediate_dropout(F.gelu(self.intermediate_dense(x_BTD))))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Attention and feed-forward blocks with residual connections and post-layer-norm."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.dropout = Dropout(shape.dropout)
        self.layer_norm = nn.LayerNorm(shape.width)
        self.feed_forward = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.width)

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None, *, passed_by: bool = False) -> Tensor:
        """With `passed_by` (LayerDrop) the layer is the identity with zero parameter gradients: DDP
        requires a gradient for every parameter."""
        if passed_by:
            return x_BTD + 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        x_BTD = self.layer_norm(x_BTD + self.dropout(self.attention(x_BTD, real_BT)))
        return self.final_layer_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))  # type: ignore[no-any-return]
