"""The predictor h_ψ: fills in what was masked. [Predictor and Cluster Head]"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa.modules.transformer import TransformerLayer, TransformerShape, init_linear


class Predictor(nn.Module):
    """One learned token at masked frames, learned positions, one post-norm transformer layer, Linear."""

    def __init__(self, shape: TransformerShape, *, max_frames: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(shape.width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(max_frames, shape.width).normal_(std=0.02))
        self.layer = TransformerLayer(shape)
        self.output = init_linear(nn.Linear(shape.width, shape.width), shape.width)

    @property
    def max_frames(self) -> int:
        return self.positions.shape[0]

    def forward(self, features_BTD: Tensor, mask_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Predictions [B, T, D]. Raises ValueError if there are more frames than positions."""
        frames = features_BTD.shape[1]
        if frames > self.max_frames:
            raise ValueError(f"{frames} frames, but the predictor has positions for {self.max_frames}")
        x_BTD = torch.where(mask_BT[..., None], self.mask_token.to(features_BTD.dtype), features_BTD)
        return self.output(self.layer(x_BTD + self.positions[:frames], real_BT))  # type: ignore[no-any-return]
