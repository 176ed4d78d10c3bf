"""Spans of masked frames. B batch, T frames, N masked frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.random import generator

_SHORTEST, _LEAST_LONGEST, _LONGEST_SHARE = 2, 4, 4  # frames; a quarter of the clip
_MOST_SPANS = 1000


def num_masked(num_frames: int, ratio: float) -> int:
    """Masked frames of a clip: the ratio, but at least one masked and one visible frame; none in a
    clip of one frame."""
    return max(1, min(num_frames - 1, round(ratio * num_frames))) if num_frames > 1 else 0


def span_mask(num_frames: int, ratio: float, *key: int | str, longest: int | None = None) -> NDArray[np.bool_]:
    """[T]: spans of 2 to `longest` frames (None: max(4, T/4)), the last one shortened so that
    exactly `num_masked` frames are masked."""
    mask = np.zeros(num_frames, bool)
    missing, draws = num_masked(num_frames, ratio), generator(*key)
    longest = longest or max(_LEAST_LONGEST, num_frames // _LONGEST_SHARE)
    for _ in range(_MOST_SPANS):
        if not missing:
            return mask
        length = min(int(draws.integers(_SHORTEST, longest + 1)), num_frames)
        start = int(draws.integers(0, num_frames - length + 1))
        new = start + np.flatnonzero(~mask[start : start + length])[:missing]
        mask[new] = True
        missing -= len(new)
    mask[np.flatnonzero(~mask)[:missing]] = True  # a ratio near 1
    return mask


class Masks(NamedTuple):
    """`mask_BT`, flat indices b·T + t of masked frames (clip by clip) and of all real ones."""

    mask_BT: Tensor
    masked_N: Tensor
    real_N: Tensor

    def to(self, device: torch.device) -> Masks:
        return Masks(*(tensor.to(device, non_blocking=True) for tensor in self))


def batch_masks(
    num_frames: Sequence[int], clip_ids: Sequence[int], ratio: float, key: int, *, longest: int | None = None
) -> Masks:
    """Masks of a batch on the CPU, keyed by (`key`, clip): they do not depend on the batch."""
    shape = len(num_frames), max(num_frames)
    mask_BT, real_BT = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (frames, clip) in enumerate(zip(num_frames, clip_ids, strict=True)):
        mask_BT[row, :frames] = span_mask(frames, ratio, key, clip, longest=longest)
        real_BT[row, :frames] = True
    flat = (torch.from_numpy(np.flatnonzero(chosen)) for chosen in (mask_BT, real_BT))
    return Masks(torch.from_numpy(mask_BT), *flat)
