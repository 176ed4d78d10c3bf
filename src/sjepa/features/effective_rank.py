"""Label-free signs of what features are worth: how many directions they use (Roy & Vetterli 2007; RankMe), and whether
they differ at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EFFECTIVE_RANK_FRAMES = 2000  # that ranks are taken over, so that they compare


def effective_rank(features_ND: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values: from 1 (one direction) to min(N, D).

    Constant features have 1; features that are not finite have NaN.
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
    """Root mean square distance of the features from their mean over their root mean square: 0 if all are the same, 1 if
    their mean is zero."""
    centred = features_ND - features_ND.mean(dim=0)
    return float(centred.square().mean().sqrt() / features_ND.square().mean().sqrt().clamp(min=1e-30))
