"""Base class of both kinds of targets: a mixture over the features of a source.

B batch, S samples, T frames, N chosen frames, D source features, C normalised and spliced features,
E projected features, K components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import given_lengths
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace


class MixtureTargets(nn.Module):
    """Posteriors of `gmm` in `space`. Subclasses define the source."""

    def __init__(self, gmm: DiagonalGMM, space: MixtureSpace, geometry: FrameGeometry) -> None:
        super().__init__()
        self.gmm, self.space, self.geometry = gmm, space, geometry

    def source(self, clean_BS: Tensor, num_samples_B: Tensor | None) -> Tensor:
        """The features of every frame, [B, T, D]."""
        raise NotImplementedError

    @torch.no_grad()
    def frames(self, clean_BS: Tensor, num_samples_B: Tensor | None, speaker_B: Tensor | None = None) -> Tensor:
        """Features that a mixture is fitted on, [B, T, C] float32."""
        num_frames_B = self.geometry.frames(given_lengths(num_samples_B, clean_BS))
        return self.space.frames(self.source(clean_BS, num_samples_B), num_frames_B, speaker_B)

    @torch.no_grad()
    def features(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """Input of the mixture, [N, E] float32, at the flat frame indices b·T + t."""
        return self.space.project(self.frames(clean_BS, num_samples_B, speaker_B).flatten(0, 1)[frame_N])

    @torch.no_grad()
    def posteriors(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """[N, K] at the flat frame indices b·T + t; rows sum to 1."""
        return self.space.posteriors(self.gmm, self.features(clean_BS, num_samples_B, frame_N, speaker_B))
