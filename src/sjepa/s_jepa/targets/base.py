"""What a source of soft targets is. B batch, S samples, N chosen frames, M other frames, D features,
K components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.ranks import Ranks
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace


class FrameChoice(NamedTuple):
    """Flat indices b·T + t of real frames: those whose targets are asked for, the rest of them, and a draw from U(0, 1)
    for each (chosen ones first), keyed by step, clip and frame."""

    chosen_N: Tensor
    other_M: Tensor
    draw: Tensor


class Targets(Protocol):
    """Posteriors of a mixture at chosen frames, from clean audio and keys of who speaks in it (0, or None, where that is
    not known); and how they move as training goes on.

    `encoder` is the network that they come from and `layer` which of its layers; None where there is none.
    """

    gmm: DiagonalGMM
    space: MixtureSpace
    encoder: Any
    geometry: FrameGeometry

    @property
    def layer(self) -> int | None: ...

    def source(self, clean_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        """The features of every frame, [B, T, D]."""
        ...

    def frames(self, clean_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None = None) -> Tensor:
        """What `space` projects for the mixture to see, of every frame [B, T, C], float32 without gradient."""
        ...

    def features(
        self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """What the mixture sees, [N, E] float32 without gradient, at the flat frame indices b·T + t."""
        ...

    def posteriors(
        self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """[N, K] float32 without gradient, at the flat frame indices b·T + t."""
        ...

    def observe(
        self, clean_BS: Tensor, num_samples_B: Tensor, frames: FrameChoice, speaker_B: Tensor | None = None
    ) -> Tensor:
        """`posteriors` at `frames.chosen_N`; all frames are remembered for `after_update`."""
        ...

    def after_update(self, encoder: nn.Module, step: int, ranks: Ranks) -> None:
        """The weights moved (`step` counts from the start of the phase): follow, with what all processes observed since."""
        ...

    def discard(self) -> None:
        """The update was left out: forget what was observed."""
        ...

    def renewal_due(self, step: int) -> bool:
        """Whether `renew` is due, and a new fit after it, now that `step` updates of the phase were made."""
        ...

    def renew(self, encoder: nn.Module) -> None:
        """Takes a new copy of `encoder`; the mixture no longer fits then."""
        ...

    def layer_check_due(self, step: int) -> bool:
        """Whether `choose_layer` wants the effective ranks now that `step` updates of the phase were made."""
        ...

    def choose_layer(self, effective_ranks: Sequence[float]) -> bool:
        """Takes the effective rank of every layer of `encoder`; whether that changed `layer`."""
        ...

    def figures(self) -> TargetFigures:
        """What a log says of the targets. Waits for the device."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class TargetFigures(NamedTuple):
    """The layer that targets come from, the smoothed effective rank of all, how many components were re-seeded so far."""

    layer: int | None = None
    layer_scores: tuple[float, ...] = ()
    reseeded: int = 0
