"""Interface of a source of soft targets. B batch, S samples, N chosen frames, M other frames,
D features, K components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.ranks import Ranks
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace


class FrameChoice(NamedTuple):
    """Flat indices b·T + t of real frames: those whose targets are requested, and the others.
    `draw`: a sample from U(0, 1) for each (chosen ones first), keyed by step, clip and frame."""

    chosen_N: Tensor
    other_M: Tensor
    draw: Tensor


class Targets(Protocol):
    """Posteriors of a mixture at chosen frames, from clean audio and speaker keys (0 or None:
    unknown), and their updates during training.

    `encoder` is the network whose `layer` provides the features; None for MFCC targets.
    `num_samples_B` None: no clip is padded.
    """

    gmm: DiagonalGMM
    space: MixtureSpace
    encoder: Any
    geometry: FrameGeometry

    @property
    def layer(self) -> int | None: ...

    def source(self, clean_BS: Tensor, num_samples_B: Tensor | None) -> Tensor:
        """The features of every frame, [B, T, D]."""
        ...

    def frames(self, clean_BS: Tensor, num_samples_B: Tensor | None, speaker_B: Tensor | None = None) -> Tensor:
        """Normalised and spliced features of every frame [B, T, C], before the projection of
        `space`; float32 without gradient."""
        ...

    def features(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """Input of the mixture, [N, E] float32 without gradient, at the flat frame indices b·T +
        t."""
        ...

    def posteriors(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frame_N: Tensor, speaker_B: Tensor | None = None
    ) -> Tensor:
        """[N, K] float32 without gradient, at the flat frame indices b·T + t."""
        ...

    def observe(
        self, clean_BS: Tensor, num_samples_B: Tensor | None, frames: FrameChoice, speaker_B: Tensor | None = None
    ) -> Tensor:
        """`posteriors` at `frames.chosen_N`; statistics of all frames are kept for
        `after_update`."""
        ...

    def after_update(self, encoder: nn.Module, step: int, ranks: Ranks) -> None:
        """Updates the targets after an optimiser step (`step` counts from the start of the phase),
        from the statistics of all ranks."""
        ...

    def discard(self) -> None:
        """The update was skipped: discards the statistics collected for it."""
        ...

    def renewal_due(self, step: int) -> bool:
        """Whether `renew`, followed by a new fit, is due after `step` updates of the phase."""
        ...

    def renew(self, encoder: nn.Module) -> None:
        """Takes a new copy of `encoder`; the mixture must then be refitted."""
        ...

    def layer_check_due(self, step: int) -> bool:
        """Whether `choose_layer` is due after `step` updates of the phase."""
        ...

    def choose_layer(self, effective_ranks: Sequence[float]) -> bool:
        """Selects a layer by the effective rank of every layer of `encoder`; returns whether
        `layer` changed."""
        ...

    def figures(self) -> TargetFigures:
        """Figures for the log. Synchronises with the device."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class TargetFigures(NamedTuple):
    """The active layer, the smoothed effective ranks of all layers, and the number of components
    re-seeded so far."""

    layer: int | None = None
    layer_scores: tuple[float, ...] = ()
    reseeded: int = 0
