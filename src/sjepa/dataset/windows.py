"""Windows of clips: random crops or tiles. Pure functions of lengths and keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import hash_array, key

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows: clip position, `start_N` and `length_N` in samples; start −1: a random crop."""

    clip_N: Ints
    start_N: Ints
    length_N: Ints

    def __len__(self) -> int:
        return len(self.clip_N)

    def subset(self, positions: NDArray[np.int64]) -> Windows:
        return Windows(self.clip_N[positions], self.start_N[positions], self.length_N[positions])


def crops(length_N: Ints, max_samples: int) -> Windows:
    """One window per clip: the whole clip, or a random crop of `max_samples` of a longer one."""
    start = np.where(length_N > max_samples, -1, 0)
    return Windows(np.arange(len(length_N)), start, np.minimum(length_N, max_samples))


def tiles(length_N: Ints, max_samples: int, *, overlap: float = 0.0, min_samples: int = 1) -> Windows:
    """Windows of `max_samples` that cover every clip, consecutive ones overlapping by `overlap`.

    The last one holds the remainder; it starts earlier if it would be shorter than `min_samples`.
    """
    step = max(1, round(max_samples * (1 - overlap)))
    count_N = np.maximum(1, -(-(length_N - max_samples) // step) + 1)
    clip = np.repeat(np.arange(len(length_N)), count_N)
    number = np.arange(len(clip)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    start = np.maximum(0, np.minimum(number * step, length_N[clip] - min_samples))
    return Windows(clip, start, np.minimum(max_samples, length_N[clip] - start))


def crop_start(seed: int, epoch: int, clip_id: int, *, clip_samples: int, window_samples: int) -> int:
    """Start of a random crop: uniform, a function of (seed, epoch, clip)."""
    draw = int(hash_array(key(seed, "crop"), epoch, clip_id))
    return draw % (clip_samples - window_samples + 1)
