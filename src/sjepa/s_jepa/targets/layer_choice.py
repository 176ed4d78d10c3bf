"""Selection of the encoder layer for the online mixture: highest smoothed effective rank.
[Adaptive Layer Selection]"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class LayerChoice:
    """The active layer, and the smoothed score of every layer (none before the first check)."""

    def __init__(self, layer: int, *, smoothing: float) -> None:
        self.layer = layer
        self.scores: tuple[float, ...] = ()
        self._smoothing = smoothing

    def offer(self, effective_ranks: Sequence[float]) -> bool:
        """Updates the scores, score ← smoothing · score + (1 − smoothing) · rank; returns whether
        the active layer changed. A check with non-finite ranks is ignored."""
        if not all(math.isfinite(rank) for rank in effective_ranks):
            return False
        old = self.scores or tuple(effective_ranks)
        self.scores = tuple(
            self._smoothing * score + (1 - self._smoothing) * rank
            for score, rank in zip(old, effective_ranks, strict=True)
        )
        before, self.layer = self.layer, self.scores.index(max(self.scores))
        return self.layer != before

    def state_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, "scores": list(self.scores)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.layer, self.scores = state["layer"], tuple(state["scores"])
