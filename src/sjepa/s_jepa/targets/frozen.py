"""Phase 1: posteriors of a frozen mixture over MFCC. [Phase 1 GMM Fitting]

B batch, S samples, T frames, N chosen frames, D features, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.ranks import Ranks
from sjepa.core.tensors import given_lengths
from sjepa.features.mfcc import MFCC, NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import AS_THEY_ARE, MixtureSpace
from sjepa.s_jepa.targets.base import FrameChoice, TargetFigures
from sjepa.s_jepa.targets.mixture import MixtureTargets

MFCC_FEATURES = f"mfcc{NUM_FEATURES}"


class MFCCTargets(MixtureTargets):
    """Soft targets from a frozen mixture over MFCC."""

    encoder: Any = None
    layer: int | None = None

    def __init__(self, gmm: DiagonalGMM, geometry: FrameGeometry, space: MixtureSpace | None = None) -> None:
        super().__init__(gmm, space or MixtureSpace(AS_THEY_ARE, NUM_FEATURES), geometry)
        self.mfcc = MFCC(geometry)

    def source(self, clean_BS: Tensor, num_samples_B: Tensor | None) -> Tensor:
        """MFCC [B, T, 39]"""
        return self.mfcc(clean_BS, given_lengths(num_samples_B, clean_BS))  # type: ignore[no-any-return]

    def observe(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frames: FrameChoice, speaker_B: Tensor | None = None
    ) -> Tensor:
        return self.posteriors(clean_BS, num_samples_B, frames.chosen_N, speaker_B)

    def after_update(self, encoder: nn.Module, step: int, ranks: Ranks) -> None:
        """No-op: the targets are frozen."""

    def discard(self) -> None:
        """No-op: no statistics are collected."""

    def renewal_due(self, step: int) -> bool:
        return False

    def renew(self, encoder: nn.Module) -> None:
        """No-op: there is no encoder to copy."""

    def layer_check_due(self, step: int) -> bool:
        return False

    def choose_layer(self, effective_ranks: Sequence[float]) -> bool:
        return False

    def figures(self) -> TargetFigures:
        return TargetFigures()
