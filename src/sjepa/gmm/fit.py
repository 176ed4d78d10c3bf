"""Fitting a mixture to a sample of frames: k-means, then EM. The sample may be distributed over
ranks; only sufficient statistics and the k-means++ seeding frames are exchanged.
[Phase 1 GMM Fitting]"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sjepa.core.random import generator
from sjepa.core.ranks import ALONE, Ranks
from sjepa.gmm.diagonal import DiagonalGMM, Posteriors
from sjepa.gmm.statistics import SufficientStatistics

_CHUNK_ROWS = 4096  # fits in the CPU cache
_SEEDING_ROWS_PER_COMPONENT = 50

Assign = Callable[[Tensor], Posteriors]


@dataclass(frozen=True)
class Fit:
    """A fitted mixture and the mean log-likelihood per frame (nats) before each EM iteration and
    after the last."""

    gmm: DiagonalGMM
    log_likelihoods: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether parameters and log-likelihoods are finite; else the mixture is unusable."""
        values = [*self.gmm.state_dict().values(), torch.tensor(self.log_likelihoods)]
        return all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())


class FitSettings(NamedTuple):
    """Number of components, seed of the k-means++ seeds, iterations of k-means and of EM."""

    num_components: int
    seed: int
    kmeans_iters: int = 5
    em_iters: int = 20


def fit_gmm(
    sample_ND: Tensor,
    settings: FitSettings,
    *,
    log: Callable[[int, float], None] = lambda iteration, log_likelihood: None,
    draw_N: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Fit:
    """Fits a mixture to frames [N, D]. Raises ValueError if there are fewer than K frames.

    k-means starts from k-means++ seeds; an empty cluster is re-seeded with a random frame. `log`
    receives the mean log-likelihood of every iteration. With several `ranks`, each passes its part
    of the sample and gets the same mixture as a single process with the whole sample; `draw_N`
    (float64) must then hold one uniform draw per frame that does not depend on the partition.
    """
    num_components, seed = settings.num_components, settings.seed
    if draw_N is None:
        draw_N = torch.from_numpy(generator(seed, "kmeans++ pool").random(len(sample_ND))).to(sample_ND.device)
    sample_ND = sample_ND.float()
    pool_PD = _pool(sample_ND, draw_N, _SEEDING_ROWS_PER_COMPONENT * num_components, ranks)
    if len(pool_PD) < num_components:
        raise ValueError(f"{len(pool_PD)} frames are too few for {num_components} components")
    gmm = DiagonalGMM(num_components, sample_ND.shape[1]).to(sample_ND.device)

    def collect(assign: Assign) -> SufficientStatistics:
        statistics = SufficientStatistics(num_components, pool_PD.mean(0))
        for chunk in sample_ND.split(_CHUNK_ROWS):
            statistics.add(chunk.double(), assign(chunk))
        ranks.add_up(*statistics.tensors)
        return statistics

    _kmeans(gmm, pool_PD, collect, passes=settings.kmeans_iters, seed=seed, ranks=ranks)
    log_likelihoods = []
    for iteration in range(settings.em_iters + 1):
        statistics = collect(gmm.posteriors)
        log_likelihoods.append(float(statistics.log_likelihood / statistics.frames))
        log(iteration, log_likelihoods[-1])
        if iteration < settings.em_iters:
            gmm.set_parameters(*statistics.maximise(gmm)[:3])
    return Fit(gmm, tuple(log_likelihoods))


def _pool(sample_ND: Tensor, draw_N: Tensor, wanted: int, ranks: Ranks) -> Tensor:
    """Seeding frames [P, D]: those with the smallest draws of all ranks; equal on all ranks."""
    smallest = ranks.rows(draw_N.sort().values[:wanted]).sort().values[:wanted]
    own_N = draw_N <= smallest[-1] if len(smallest) else draw_N < 0
    draws_P, pool_PD = ranks.rows(draw_N[own_N]), ranks.rows(sample_ND[own_N])
    return pool_PD[draws_P.argsort(stable=True)][:wanted]


def _kmeans(
    gmm: DiagonalGMM,
    pool_PD: Tensor,
    collect: Callable[[Assign], SufficientStatistics],
    *,
    passes: int,
    seed: int,
    ranks: Ranks,
) -> None:
    """Initialises the mixture from k-means with `passes` iterations over the sample."""
    means_KD = _spread_seeds(pool_PD, gmm.num_components, seed) if ranks.is_main else torch.zeros_like(gmm.means)
    # broadcast of rank 0: floating-point results may differ between machines
    ranks.add_up(means_KD)
    gmm.means.copy_(means_KD)
    draw = generator(seed, "kmeans")
    for _ in range(passes):
        statistics = collect(lambda chunk: _nearest(chunk, gmm.means))
        weights_K, means_KD, variances_KD, alive_K = statistics.maximise(gmm)
        empty = (~alive_K).nonzero().flatten().cpu()
        if len(empty):
            rows = torch.from_numpy(draw.integers(0, len(pool_PD), size=len(empty)))
            means_KD[empty], variances_KD[empty] = pool_PD[rows], pool_PD.var(0)
            weights_K[empty] = 1.0 / statistics.frames.float()
        gmm.set_parameters(weights_K, means_KD, variances_KD)


def _nearest(chunk_ND: Tensor, means_KD: Tensor) -> Posteriors:
    """Hard assignment of each frame to the nearest mean."""
    score_NK = torch.addmm(-0.5 * means_KD.square().sum(1), chunk_ND, means_KD.T)
    hard_NK = torch.zeros_like(score_NK).scatter_(1, score_NK.argmax(dim=1, keepdim=True), 1.0)
    return Posteriors(hard_NK, torch.zeros_like(score_NK[:, 0]))


def _spread_seeds(pool_PD: Tensor, num_components: int, seed: int) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): candidates are drawn in proportion to the
    squared distance to the nearest seed; the one with the lowest resulting total distance is
    chosen."""
    draw = generator(seed, "kmeans++")
    centre_D = pool_PD.mean(0)
    pool_PD = pool_PD - centre_D
    square_P = pool_PD.square().sum(1)
    candidates = 2 + int(math.log(num_components))
    chosen = [0]
    distance_P = (pool_PD - pool_PD[0]).square().sum(1)
    for points in draw.random((num_components - 1, candidates)):
        cumulative_P = distance_P.double().cumsum(0)
        targets = torch.from_numpy(points).to(cumulative_P) * cumulative_P[-1]
        rows = torch.searchsorted(cumulative_P, targets, right=True).clamp(max=len(pool_PD) - 1)
        to_rows = (square_P[:, None] + square_P[rows] - 2 * pool_PD @ pool_PD[rows].T).clamp(min=0)
        left = torch.minimum(distance_P[:, None], to_rows)
        best = int(left.sum(0).argmin())
        chosen.append(int(rows[best]))
        distance_P = left[:, best]
    return pool_PD[chosen] + centre_D
