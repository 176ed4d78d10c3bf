"""Fitting a mixture to a sample of frames: k-means, then EM. [Phase 1 GMM Fitting]"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sjepa.core.random import generator
from sjepa.gmm.diagonal import DiagonalGMM, Posteriors
from sjepa.gmm.statistics import SufficientStatistics

_CHUNK_ROWS = 4096  # stays in the processor's cache
_SEEDING_ROWS_PER_COMPONENT = 50


@dataclass(frozen=True)
class Fit:
    """A fitted mixture and the mean log-likelihood per frame (nats) before each EM iteration and after the last."""

    gmm: DiagonalGMM
    log_likelihoods: tuple[float, ...]


def fit_gmm(
    sample_ND: Tensor,
    num_components: int,
    *,
    seed: int,
    kmeans_iters: int = 5,
    em_iters: int = 20,
    features: str = "",
    log: Callable[[int, float], None] = lambda iteration, log_likelihood: None,
) -> Fit:
    """Fits K components to frames [N, D], of which there must be at least K. Raises ValueError otherwise.

    k-means starts from k-means++ seeds; an empty cluster takes a frame of the sample. `log` receives every iteration's
    mean log-likelihood.
    """
    if len(sample_ND) < num_components:
        raise ValueError(f"{len(sample_ND)} frames are too few for {num_components} components")
    sample_ND = sample_ND.float()
    gmm = _kmeans(sample_ND, num_components, kmeans_iters, seed, features)
    log_likelihoods = []
    for iteration in range(em_iters + 1):
        statistics = _collect(gmm, sample_ND, gmm.posteriors)
        log_likelihoods.append(float(statistics.log_likelihood / statistics.frames))
        log(iteration, log_likelihoods[-1])
        if iteration < em_iters:
            gmm.set_parameters(*statistics.maximise(gmm)[:3])
    return Fit(gmm, tuple(log_likelihoods))


def _collect(gmm: DiagonalGMM, sample_ND: Tensor, assign: Callable[[Tensor], Posteriors]) -> SufficientStatistics:
    statistics = SufficientStatistics(gmm.num_components, sample_ND.mean(0))
    for chunk in sample_ND.split(_CHUNK_ROWS):
        statistics.add(chunk.double(), assign(chunk))
    return statistics


def _kmeans(sample_ND: Tensor, num_components: int, passes: int, seed: int, features: str) -> DiagonalGMM:
    """A mixture with the clusters' means, variances and proportions after `passes` passes over the sample."""
    gmm = DiagonalGMM(num_components, sample_ND.shape[1], features=features).to(sample_ND.device)
    gmm.means.copy_(_spread_seeds(sample_ND, num_components, seed))
    draw = generator(seed, "kmeans")
    for _ in range(passes):
        statistics = _collect(gmm, sample_ND, lambda chunk: _nearest(chunk, gmm.means))
        weights_K, means_KD, variances_KD, alive_K = statistics.maximise(gmm)
        empty = (~alive_K).nonzero().flatten().cpu()
        if len(empty):
            rows = torch.from_numpy(draw.integers(0, len(sample_ND), size=len(empty)))
            means_KD[empty], variances_KD[empty] = sample_ND[rows], sample_ND.var(0)
            weights_K[empty] = 1.0 / len(sample_ND)
        gmm.set_parameters(weights_K, means_KD, variances_KD)
    return gmm


def _nearest(chunk_ND: Tensor, means_KD: Tensor) -> Posteriors:
    """All of a frame's responsibility on the nearest mean."""
    score_NK = torch.addmm(-0.5 * means_KD.square().sum(1), chunk_ND, means_KD.T)
    hard_NK = torch.zeros_like(score_NK).scatter_(1, score_NK.argmax(dim=1, keepdim=True), 1.0)
    return Posteriors(hard_NK, torch.zeros_like(score_NK[:, 0]))


def _spread_seeds(sample_ND: Tensor, num_components: int, seed: int) -> Tensor:
    """Greedy k-means++ on a part of the sample: candidates for the next seed are drawn in proportion to the squared distance
    to those before; the one that leaves the least distance is taken. (Arthur & Vassilvitskii 2007)"""
    draw = generator(seed, "kmeans++")
    few = min(len(sample_ND), _SEEDING_ROWS_PER_COMPONENT * num_components)
    pool_ND = sample_ND[torch.from_numpy(draw.permutation(len(sample_ND))[:few]).to(sample_ND.device)]
    centre_D = pool_ND.mean(0)
    pool_ND = pool_ND - centre_D
    square_N = pool_ND.square().sum(1)
    candidates = 2 + int(math.log(num_components))
    chosen = [0]
    distance_N = (pool_ND - pool_ND[0]).square().sum(1)
    for points in draw.random((num_components - 1, candidates)):
        cumulative_N = distance_N.double().cumsum(0)
        targets = torch.from_numpy(points).to(cumulative_N) * cumulative_N[-1]
        rows = torch.searchsorted(cumulative_N, targets, right=True).clamp(max=few - 1)
        to_rows = (square_N[:, None] + square_N[rows] - 2 * pool_ND @ pool_ND[rows].T).clamp(min=0)
        left = torch.minimum(distance_N[:, None], to_rows)
        best = int(left.sum(0).argmin())
        chosen.append(int(rows[best]))
        distance_N = left[:, best]
    return pool_ND[chosen] + centre_D
