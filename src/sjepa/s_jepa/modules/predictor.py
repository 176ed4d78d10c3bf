"""The predictor h_ψ: predicts features at masked frames. [Predictor and Cluster Head]

B batch, T frames, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sjepa.modules.transformer import TransformerLayer, TransformerShape, init_linear
from sjepa.s_jepa.modules.positions import ConvPositions

Positions = Literal["learned", "convolution"]


class Predictor(nn.Module):
    """A learned mask token, positions, one post-norm transformer layer, Linear.

    Learned absolute positions (as in the paper) need much training before attention finds the
    neighbours of a masked frame. Convolutional positions, as in the encoder, are local from the
    start.
    """

    def __init__(
        self,
        shape: TransformerShape,
        *,
        max_frames: int,
        positions: Positions = "learned",
        kernel: int = 128,
        groups: int = 16,
    ) -> None:
        """`max_frames`: number of learned positions. `kernel`, `groups`: for convolutional ones."""
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(shape.width).normal_(std=0.02))
        if positions == "learned":
            self.positions: nn.Module | nn.Parameter = nn.Parameter(
                torch.empty(max_frames, shape.width).normal_(std=0.02)
            )
        else:
            self.positions = ConvPositions(shape.width, kernel=kernel, groups=groups)
            self.layer_norm = nn.LayerNorm(shape.width)
        self.layer = TransformerLayer(shape)
        self.output = init_linear(nn.Linear(shape.width, shape.width), shape.width)

    def forward(self, features_BTD: Tensor, mask_BT: Tensor, real_BT: Tensor | None) -> Tensor:
        """Predictions [B, T, D]; `real_BT` None: no frame is padding. Raises ValueError for more
        frames than learned positions."""
        x_BTD = torch.where(mask_BT[..., None], self.mask_token.to(features_BTD.dtype), features_BTD)
        return self.output(self.layer(self._placed(x_BTD, real_BT), real_BT))  # type: ignore[no-any-return]

    def _placed(self, x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
        """Adds position embeddings."""
        if isinstance(self.positions, nn.Module):
            x_BTD = x_BTD if real_BT is None else x_BTD * real_BT[..., None]
            return self.layer_norm(x_BTD + self.positions(x_BTD))  # type: ignore[no-any-return]
        frames = x_BTD.shape[1]
        if frames > len(self.positions):
            raise ValueError(f"{frames} frames, but the predictor has positions for {len(self.positions)}")
        return x_BTD + self.positions[:frames]
