"""Phase 2: posteriors of an online mixture over features of the EMA encoder. [Phase 2, Online GMM
Updates]

B batch, S samples, N chosen frames, M other frames, D width, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sjepa.core.ranks import Ranks
from sjepa.gmm.diagonal import DiagonalGMM, mixture_moments
from sjepa.gmm.online_update import Candidates, blend, reseed
from sjepa.gmm.space import AS_THEY_ARE, MixtureSpace
from sjepa.gmm.statistics import SufficientStatistics
from sjepa.s_jepa.targets.base import FrameChoice, TargetFigures
from sjepa.s_jepa.targets.layer_choice import LayerChoice
from sjepa.s_jepa.targets.mixture import MixtureTargets


@dataclass(frozen=True)
class OnlineSettings:
    """Update rules of online targets: decay of the mixture's parameters, EMA decay as a function of
    the step within the phase, and steps between two layer checks (None: fixed layer). With
    `hold_steps` both stay fixed and are renewed every `hold_steps` steps."""

    parameter_decay: float
    ema_decay: Callable[[int], float]
    layer_check_every: int | None
    hold_steps: int | None = None


class _Seen(NamedTuple):
    """Statistics collected since the last update."""

    statistics: SufficientStatistics
    candidates: Candidates


class OnlineTargets(MixtureTargets):
    """Soft targets that follow the trained encoder. `encoder` is called with waveforms, their
    lengths and the last layer needed (`up_to`), and is updated by `follow(source, decay)`."""

    num_reseeded: Tensor

    def __init__(
        self,
        gmm: DiagonalGMM,
        encoder: Any,
        choice: LayerChoice,
        settings: OnlineSettings,
        space: MixtureSpace | None = None,
    ) -> None:
        super().__init__(gmm, space or MixtureSpace(AS_THEY_ARE, gmm.num_features), encoder.geometry)
        self.encoder, self.settings = encoder, settings
        self._choice = choice
        self.register_buffer("num_reseeded", torch.zeros((), dtype=torch.int64))
        self._seen: _Seen | None = None

    @property
    def layer(self) -> int:
        return self._choice.layer

    def source(self, clean_BS: Tensor, num_samples_B: Tensor | None) -> Tensor:
        """Features of the active layer [B, T, D]."""
        return self.encoder(clean_BS, num_samples_B, up_to=self.layer).features_BTD  # type: ignore[no-any-return]

    @torch.no_grad()
    def observe(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frames: FrameChoice, speaker_B: Tensor | None = None
    ) -> Tensor:
        """[N, K] at the chosen frames; statistics of all real frames are accumulated until the
        update."""
        if self.settings.hold_steps is not None:
            return self.posteriors(clean_BS, num_samples_B, frames.chosen_N, speaker_B)
        features_ND = self.features(clean_BS, num_samples_B, torch.cat([frames.chosen_N, frames.other_M]), speaker_B)
        posteriors = self.gmm.posteriors(features_ND)
        seen = self._seen or self._nothing_seen()
        seen.statistics.add(features_ND, posteriors)
        self._seen = seen._replace(candidates=seen.candidates.merge(Candidates.of(frames.draw, features_ND)))
        chosen = slice(len(frames.chosen_N))
        if self.space.is_tempered:
            return self.space.posteriors(self.gmm, features_ND[chosen])
        return posteriors.responsibilities_NK[chosen]

    @torch.no_grad()
    def after_update(self, encoder: nn.Module, step: int, ranks: Ranks) -> None:
        if self.settings.hold_steps is not None:
            return
        seen = self._seen or self._nothing_seen()
        ranks.add_up(*seen.statistics.tensors)
        blend(self.gmm, seen.statistics, self.settings.parameter_decay)
        self.num_reseeded += reseed(self.gmm, seen.candidates.pooled(ranks))
        self.discard()
        self.encoder.follow(encoder, self.settings.ema_decay(step))  # type: ignore[operator]

    def discard(self) -> None:
        self._seen = None

    def renewal_due(self, step: int) -> bool:
        every = self.settings.hold_steps
        return every is not None and step > 0 and step % every == 0

    def renew(self, encoder: nn.Module) -> None:
        self.encoder.follow(encoder, 0.0)  # type: ignore[operator]

    def layer_check_due(self, step: int) -> bool:
        every = self.settings.layer_check_every
        return every is not None and step > 0 and step % every == 0

    def choose_layer(self, effective_ranks: Sequence[float]) -> bool:
        return self._choice.offer(effective_ranks)

    def figures(self) -> TargetFigures:
        return TargetFigures(self.layer, self._choice.scores, int(self.num_reseeded))

    def get_extra_state(self) -> dict[str, Any]:
        return self._choice.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._choice.load_state_dict(state)

    def _nothing_seen(self) -> _Seen:
        centre_D, _ = mixture_moments(self.gmm.weights, self.gmm.means, self.gmm.variances)
        return _Seen(
            SufficientStatistics(self.gmm.num_components, centre_D),
            Candidates(centre_D.new_zeros(0), centre_D.new_zeros(0, len(centre_D))),
        )
