"""What prediction without a network achieves at masked frames. B batch, T frames, D width."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_mean(targets_BTD: Tensor, visible_BT: Tensor) -> Tensor:
    """The mean of a clip's visible frames, at every frame."""
    shown_BTD = targets_BTD * visible_BT[..., None]
    count_B11 = visible_BT.sum(1).clamp(min=1)[:, None, None]
    return (shown_BTD.sum(1, keepdim=True) / count_B11).expand_as(targets_BTD)


def interpolated(targets_BTD: Tensor, visible_BT: Tensor) -> Tensor:
    """Linear interpolation between the nearest visible frames on both sides; the nearest one before
    the first and after the last."""
    frames = visible_BT.shape[1]
    step_T = torch.arange(frames, device=visible_BT.device)
    before_BT = torch.where(visible_BT, step_T, -1).cummax(1).values
    after_BT = torch.where(visible_BT, step_T, frames).flip(1).cummin(1).values.flip(1)
    has_before_BT, has_after_BT = before_BT >= 0, after_BT < frames
    before_BT = torch.where(has_before_BT, before_BT, after_BT).clamp(max=frames - 1)
    after_BT = torch.where(has_after_BT, after_BT, before_BT)
    share_BT = (step_T - before_BT) / (after_BT - before_BT).clamp(min=1)

    def at(index_BT: Tensor) -> Tensor:
        return targets_BTD.gather(1, index_BT[..., None].expand_as(targets_BTD))

    return at(before_BT).lerp(at(after_BT), share_BT[..., None].to(targets_BTD.dtype))
