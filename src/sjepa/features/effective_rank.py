"""How many directions features really use: a label-free sign of their quality. (Roy & Vetterli 2007; RankMe)"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
