"""Gaussian mixture with diagonal covariances. N frames, D features, K components. [GMM Details]"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path

VARIANCE_FLOOR = 1e-6
RELATIVE_VARIANCE_FLOOR = 1e-4  # of the mixture's total variance: below it, float32 rounding breaks EM convergence
_CHUNK_ELEMENTS = 1 << 24  # rows × components per chunk
_LOWEST_LOG = -60.0
_FORMAT = 1


class Posteriors(NamedTuple):
    """Responsibilities [N, K] (rows sum to 1) and log-likelihood of each frame, nats."""

    responsibilities_NK: Tensor
    log_likelihood_N: Tensor


class DiagonalGMM(nn.Module):
    """Weights [K], means [K, D] and variances [K, D] as float32 buffers. `features`: name of the
    features it was fitted on."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, num_components: int, num_features: int, *, features: str = "") -> None:
        super().__init__()
        self.features = features
        self.register_buffer("weights", torch.full((num_components,), 1.0 / num_components))
        self.register_buffer("means", torch.zeros(num_components, num_features))
        self.register_buffer("variances", torch.ones(num_components, num_features))

    @property
    def num_components(self) -> int:
        return self.means.shape[0]

    @property
    def num_features(self) -> int:
        return self.means.shape[1]

    @torch.no_grad()
    def set_parameters(self, weights_K: Tensor, means_KD: Tensor, variances_KD: Tensor) -> None:
        """Replaces the parameters, with an absolute and a relative variance floor."""
        self.weights.copy_(weights_K / weights_K.sum())
        self.means.copy_(means_KD)
        self.variances.copy_(floored(variances_KD, weights_K, means_KD))

    @torch.no_grad()
    def posteriors(self, features_ND: Tensor, *, temperature: Tensor | None = None) -> Posteriors:
        """Responsibilities of all components for every frame, in float32 log space. With a
        `temperature` the log joint is divided by it, and the log-likelihood is then not meaningful.

        log N(x; μ, σ²) is expanded into one matrix product; rows are processed in chunks to bound
        memory. Raises ValueError if the number of features differs.
        [GMM Details, Posterior Computation]
        """
        if features_ND.shape[-1] != self.num_features:
            raise ValueError(f"{features_ND.shape[-1]} features where the GMM has {self.num_features}")
        rows = max(1, _CHUNK_ELEMENTS // self.num_components)
        parts = [self._chunk(chunk, temperature) for chunk in features_ND.split(rows)]
        if len(parts) == 1:
            return parts[0]
        return Posteriors(*(torch.cat(values) for values in zip(*parts, strict=True)))

    @torch.no_grad()
    def log_joint(self, features_ND: Tensor) -> Tensor:
        """log π_k N(x_n; μ_k, σ²_k), nats, [N, K] float32."""
        with torch.autocast(features_ND.device.type, enabled=False):
            return self._log_joint(features_ND.float())

    def _log_joint(self, features_ND: Tensor) -> Tensor:
        # standardised by the mixture's mean and deviation, against cancellation
        centre_D, scale_D = mixture_moments(self.weights, self.means, self.variances)
        x_ND = (features_ND - centre_D) / scale_D
        mean_KD = (self.means - centre_D) / scale_D
        precision_KD = scale_D.square() / self.variances
        constant_K = self.weights.log() - 0.5 * (
            torch.log(2 * math.pi * self.variances) + mean_KD.square() * precision_KD
        ).sum(1)
        coefficients = torch.cat([-0.5 * precision_KD, mean_KD * precision_KD], dim=1)
        return torch.addmm(constant_K, torch.cat([x_ND.square(), x_ND], dim=1), coefficients.T)

    def _chunk(self, features_ND: Tensor, temperature: Tensor | None) -> Posteriors:
        joint_NK = self.log_joint(features_ND)
        if temperature is not None:
            joint_NK = joint_NK.div_(temperature)
        highest_N1 = joint_NK.amax(dim=1, keepdim=True)
        # one exp for normaliser and posteriors; clamped to avoid slow denormals
        scaled_NK = joint_NK.sub_(highest_N1).clamp_(min=_LOWEST_LOG).exp_()
        total_N1 = scaled_NK.sum(dim=1, keepdim=True)
        return Posteriors(scaled_NK.div_(total_N1), (highest_N1 + total_N1.log()).squeeze(1))

    def save(self, path: Path) -> None:
        """Writes the mixture to a file, atomically."""
        content = {"format": _FORMAT, "features": self.features, **self.state_dict()}
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    @staticmethod
    def load(path: Path) -> DiagonalGMM:
        """Reads a file of `save`. Raises UserError if it is missing, no GMM or has invalid
        values."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            weights, means, variances = content["weights"], content["means"], content["variances"]
            gmm = DiagonalGMM(*means.shape, features=content["features"])
            gmm.load_state_dict({"weights": weights, "means": means, "variances": variances})
        except FileNotFoundError:
            raise UserError(f"{path}: no such GMM file") from None
        except Exception as error:  # torch.load raises many types
            raise UserError(f"{path}: not a fitted GMM ({type(error).__name__})") from None
        values = torch.cat([weights.flatten(), means.flatten(), variances.flatten()])
        if not torch.isfinite(values).all() or (variances <= 0).any() or (weights < 0).any() or weights.sum() <= 0:
            raise UserError(f"{path}: holds weights, means or variances that no GMM can have")
        return gmm


def mixture_moments(weights_K: Tensor, means_KD: Tensor, variances_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of the whole mixture."""
    share_K1 = (weights_K / weights_K.sum())[:, None]
    centre_D = (share_K1 * means_KD).sum(0)
    variance_D = (share_K1 * (variances_KD + (means_KD - centre_D).square())).sum(0)
    return centre_D, variance_D.clamp(min=VARIANCE_FLOOR).sqrt()


def floored(variances_KD: Tensor, weights_K: Tensor, means_KD: Tensor) -> Tensor:
    """Variances with the absolute and the relative floor applied."""
    _, scale_D = mixture_moments(weights_K, means_KD, variances_KD)
    return variances_KD.clamp(min=VARIANCE_FLOOR).maximum(RELATIVE_VARIANCE_FLOOR * scale_D.square())
