"""Label-free quality metrics of features: effective rank (Roy & Vetterli 2007; RankMe) and relative
spread, both indicators of collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EFFECTIVE_RANK_FRAMES = 2000  # fixed sample size, so that ranks are comparable


def effective_rank(features_ND: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values, 1 to min(N, D).

    1 for constant features, NaN for non-finite ones.
    """
    wide_ND = features_ND.cpu().double()  # not every device has float64
    if not torch.isfinite(wide_ND).all():
        return math.nan
    centred = wide_ND - wide_ND.mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total <= 0:
        return 1.0
    share = values / total
    return float(torch.exp(torch.special.entr(share).sum()))


def spread(features_ND: Tensor) -> float:
    """RMS of the centred features over the RMS of the features: 0 if all are equal, 1 if their mean
    is zero."""
    centred = features_ND - features_ND.mean(dim=0)
    return float(centred.square().mean().sqrt() / features_ND.square().mean().sqrt().clamp(min=1e-30))
