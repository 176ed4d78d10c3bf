"""What a source of soft targets is. B batch, S samples, N chosen frames, K components."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sjepa.gmm.diagonal import DiagonalGMM


class Targets(Protocol):
    """Posteriors of a mixture at chosen frames, from clean audio."""

    gmm: DiagonalGMM

    def posteriors(self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor) -> Tensor:
        """[N, K] float32 without gradient, at the flat frame indices b·T + t."""
        ...
