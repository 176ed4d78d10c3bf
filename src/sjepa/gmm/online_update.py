"""Online updates of a mixture on drifting features. [Online GMM Updates]

K components, D features, R candidates.

Stepwise EM (Sato & Ishii 2000; Cappé & Moulines 2009): the statistics of the old mixture have
weight `decay`, those of the current step 1 − decay. A component moves in proportion to its
responsibility mass; without mass it is unchanged. With many frames per component this equals the
paper's θ ← decay·θ + (1 − decay)·θ̂. With few frames, that formula moves a component by a full step
towards a single frame and adopts an underestimated variance, and the mixture degenerates (results
in `docs/paper_map.md`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sjepa.core.ranks import Ranks
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.statistics import SufficientStatistics

DEAD_SHARE = 0.01  # of 1/K: components of lower weight are re-seeded
MOST_CANDIDATES = 64  # re-seeding frames per step; further dead components wait for the next step


class Candidates(NamedTuple):
    """Re-seeding frames [R, D] of a step and their draws [R], ascending; inf for empty slots."""

    draw_R: Tensor
    frames_RD: Tensor

    @staticmethod
    def of(draw_N: Tensor, features_ND: Tensor) -> Candidates:
        """The frames with the smallest draws, independent of order and partition."""
        draw_R, index_R = draw_N.sort(stable=True)
        few = index_R[:MOST_CANDIDATES]
        return Candidates(draw_R[:MOST_CANDIDATES], features_ND[few])

    def merge(self, other: Candidates) -> Candidates:
        return Candidates.of(torch.cat([self.draw_R, other.draw_R]), torch.cat([self.frames_RD, other.frames_RD]))

    def pooled(self, ranks: Ranks) -> Candidates:
        """The candidates of all ranks, merged."""
        missing = MOST_CANDIDATES - len(self.draw_R)
        draw_R = torch.cat([self.draw_R, self.draw_R.new_full((missing,), torch.inf)])
        frames_RD = torch.cat([self.frames_RD, self.frames_RD.new_zeros(missing, self.frames_RD.shape[1])])
        return Candidates.of(ranks.stack(draw_R).flatten(), ranks.stack(frames_RD).flatten(0, 1))


@torch.no_grad()
def blend(gmm: DiagonalGMM, statistics: SufficientStatistics, decay: float) -> None:
    """Updates the mixture with the statistics of one optimiser step; no-op without frames."""
    new = statistics.maximise(gmm)
    rate = (1 - decay) * (statistics.frames > 0).to(statistics.frames)
    share_K = statistics.mass_K / statistics.frames.clamp(min=1.0)
    old_K, means_KD, variances_KD = (value.to(share_K) for value in (gmm.weights, gmm.means, gmm.variances))
    weights_K = (1 - rate) * old_K + rate * share_K
    rate_K1 = (rate * share_K / weights_K.clamp(min=1e-30) * new.alive_K)[:, None]
    step_KD = new.means_KD.to(share_K) - means_KD
    gmm.set_parameters(
        weights_K,
        means_KD + rate_K1 * step_KD,
        variances_KD.lerp(new.variances_KD.to(share_K), rate_K1) + rate_K1 * (1 - rate_K1) * step_KD.square(),
    )


@torch.no_grad()
def reseed(gmm: DiagonalGMM, candidates: Candidates) -> Tensor:
    """Re-seeds dead components: a candidate frame as mean, the average variance of the live
    components, weight 1/K.

    Returns their number as a tensor on the device, without synchronisation.
    """
    components = gmm.num_components
    dead_K = gmm.weights < DEAD_SHARE / components
    rank_K = dead_K.cumsum(0) - 1
    chosen_K = dead_K & (rank_K < candidates.draw_R.isfinite().sum())
    frame_KD = candidates.frames_RD[rank_K.clamp(0, len(candidates.draw_R) - 1)]
    live_K1 = (gmm.weights * ~dead_K)[:, None]
    typical_D = (live_K1 * gmm.variances).sum(0) / live_K1.sum().clamp(min=1e-12)
    chosen_K1 = chosen_K[:, None]
    fresh_KD = torch.where(chosen_K1, typical_D, gmm.variances)
    gmm.set_parameters(
        torch.where(chosen_K, 1.0 / components, gmm.weights), torch.where(chosen_K1, frame_KD, gmm.means), fresh_KD
    )
    return chosen_K.sum()
