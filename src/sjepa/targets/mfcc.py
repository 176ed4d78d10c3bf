"""Phase 1: posteriors of a frozen mixture over MFCC. [Phase 1 GMM Fitting]

B batch, S samples, T frames, N chosen frames, D features, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sjepa.core.ranks import Ranks
from sjepa.features.mfcc import MFCC, NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.targets.base import FrameChoice, TargetFigures

MFCC_FEATURES = f"mfcc{NUM_FEATURES}"


class MFCCTargets(nn.Module):
    """Soft targets that never change."""

    encoder: Any = None
    layer: int | None = None

    def __init__(self, gmm: DiagonalGMM) -> None:
        super().__init__()
        self.gmm = gmm
        self.mfcc = MFCC()

    @torch.no_grad()
    def features(self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor) -> Tensor:
        """MFCC [N, D] at the flat frame indices b·T + t."""
        return self.mfcc(clean_BS, num_samples_B).flatten(0, 1)[frame_N]  # type: ignore[no-any-return]

    @torch.no_grad()
    def posteriors(self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor) -> Tensor:
        """[N, K] at the flat frame indices b·T + t; rows sum to 1."""
        return self.gmm.posteriors(self.features(clean_BS, num_samples_B, frame_N)).responsibilities_NK

    def observe(self, clean_BS: Tensor, num_samples_B: Tensor, frames: FrameChoice) -> Tensor:
        return self.posteriors(clean_BS, num_samples_B, frames.chosen_N)

    def after_update(self, encoder: nn.Module, step: int, ranks: Ranks) -> None:
        """Nothing moves."""

    def discard(self) -> None:
        """Nothing was kept."""

    def layer_check_due(self, step: int) -> bool:
        return False

    def choose_layer(self, ranks: Sequence[float]) -> bool:
        return False

    def figures(self) -> TargetFigures:
        return TargetFigures()
