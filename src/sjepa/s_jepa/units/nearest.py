"""The frames nearest to every component. N frames, K components, M kept per component."""

from __future__ import annotations

import torch
from torch import Tensor


class NearestFrames:
    """Keeps the frames of highest score of every component, each with a payload of numbers."""

    def __init__(self, num_components: int, most: int, payloads: int) -> None:
        """`payloads`: numbers that are kept with a frame."""
        self._most = most
        self._score_MK = torch.zeros(0, num_components)
        self._payload_PMK = torch.zeros(payloads, 0, num_components, dtype=torch.int64)

    def add(self, score_NK: Tensor, *payloads_N: Tensor) -> None:
        """`score_NK`: proximity of frames and components; `payloads_N`: int64 of every frame."""
        new_MK, place_MK = score_NK.float().cpu().topk(min(self._most, len(score_NK)), dim=0)
        new_PMK = torch.stack([payload_N.cpu() for payload_N in payloads_N])[:, place_MK]
        score_MK, payload_PMK = torch.cat([self._score_MK, new_MK]), torch.cat([self._payload_PMK, new_PMK], dim=1)
        self._score_MK, best_MK = score_MK.topk(min(self._most, len(score_MK)), dim=0)
        self._payload_PMK = payload_PMK.gather(1, best_MK.expand(len(payload_PMK), -1, -1))

    def of(self, component: int) -> list[tuple[int, ...]]:
        """The payloads of a component's frames, nearest first."""
        return [tuple(row) for row in self._payload_PMK[:, :, component].T.tolist()]
