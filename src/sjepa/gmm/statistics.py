"""Sufficient statistics of a diagonal mixture and the M-step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sjepa.gmm.diagonal import VARIANCE_FLOOR, DiagonalGMM, Posteriors


class Parameters(NamedTuple):
    """Weights [K], means [K, D], variances [K, D] and mask of components with mass [K]."""

    weights_K: Tensor
    means_KD: Tensor
    variances_KD: Tensor
    alive_K: Tensor


class SufficientStatistics:
    """Responsibility mass, weighted sums and weighted squares per component, relative to
    `centre_D`; in float64, except on mps (float32)."""

    def __init__(self, num_components: int, centre_D: Tensor) -> None:
        self.centre_D = centre_D

        def zeros(*shape: int) -> Tensor:
            wide = torch.float32 if centre_D.device.type == "mps" else torch.float64
            return torch.zeros(shape, dtype=wide, device=centre_D.device)

        self.mass_K = zeros(num_components)
        self.sums_KD = zeros(num_components, len(centre_D))
        self.squares_KD = zeros(num_components, len(centre_D))
        self.log_likelihood = zeros()
        self.frames = zeros()

    def add(self, features_ND: Tensor, posteriors: Posteriors) -> None:
        """Accumulates frames [N, D] with their posteriors; products are in the dtype of the frames.

        Variances are computed as E[x²] − E[x]²: in float32, cancellation corrupts the variance of a
        component that is narrow relative to its distance from `centre_D`; pass float64 frames then.
        """
        x_ND = features_ND - self.centre_D
        moments = torch.cat([x_ND, x_ND.square(), torch.ones_like(x_ND[:, :1])], dim=1)
        # half precision has too small a range
        with torch.autocast(moments.device.type, enabled=False):
            products_KM = posteriors.responsibilities_NK.to(moments.dtype).T @ moments
        sums, squares, mass = products_KM.split([x_ND.shape[1], x_ND.shape[1], 1], dim=1)
        self.sums_KD += sums
        self.squares_KD += squares
        self.mass_K += mass[:, 0]
        self.log_likelihood += posteriors.log_likelihood_N.sum(dtype=self.mass_K.dtype)
        self.frames += len(x_ND)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors to all-reduce over ranks; `centre_D` must be equal on all ranks."""
        return self.mass_K, self.sums_KD, self.squares_KD, self.log_likelihood, self.frames

    def maximise(self, previous: DiagonalGMM, *, least_mass: float = 1e-3) -> Parameters:
        """M-step. Components with a mass below `least_mass` frames keep their mean and variance."""
        alive_K = self.mass_K > least_mass
        mass_K1 = torch.where(alive_K, self.mass_K, 1.0)[:, None]
        offset_KD = self.sums_KD / mass_K1
        variances_KD = (self.squares_KD / mass_K1 - offset_KD.square()).clamp(min=VARIANCE_FLOOR)
        keep_K1 = ~alive_K[:, None]
        return Parameters(
            (self.mass_K / self.mass_K.sum().clamp(min=1e-12)).float(),
            torch.where(keep_K1, previous.means.to(self.mass_K), offset_KD + self.centre_D).float(),
            torch.where(keep_K1, previous.variances.to(self.mass_K), variances_KD).float(),
            alive_K,
        )
