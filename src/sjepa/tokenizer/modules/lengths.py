"""Statistics and masks over real samples only. B batch, C channels, T time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Real(NamedTuple):
    """Which steps of a padded batch are real: `mask_B1T` of ones and zeros, None where no clip is
    padded, and their number per clip."""

    mask_B1T: Tensor | None
    count_B1: Tensor

    def keep(self, x_BCT: Tensor) -> Tensor:
        """Zeroes the padding."""
        return x_BCT if self.mask_B1T is None else x_BCT * self.mask_B1T.to(x_BCT.dtype)

    def moments(self, x_BCT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over channels and real time, [B, 1, 1] each, float32."""
        x_BCT = self.keep(x_BCT.float())
        count_B11 = (self.count_B1 * x_BCT.shape[1])[..., None]
        mean_B11 = x_BCT.sum((1, 2), keepdim=True) / count_B11
        centred_BCT = self.keep(x_BCT - mean_B11)
        return mean_B11, centred_BCT.square().sum((1, 2), keepdim=True) / count_B11


def real_steps(length_B: Tensor | None, like_BCT: Tensor) -> Real:
    """`length_B`: real steps of each clip; None: all of them."""
    steps = like_BCT.shape[-1]
    if length_B is None:
        return Real(None, torch.full((len(like_BCT), 1), float(steps), device=like_BCT.device))
    mask_BT = torch.arange(steps, device=like_BCT.device) < length_B[:, None]
    return Real(mask_BT[:, None].float(), length_B[:, None].clamp(min=1).float())
