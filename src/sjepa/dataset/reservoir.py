"""Uniform sampling of frames from a corpus of any size; only the sampled windows are decoded.

The frames of a window are divided into groups of equal size, each spread evenly over the window;
the groups with the smallest keyed hashes form the sample. Each frame is in exactly one group, so
all are equally likely; the choice does not depend on order, number of workers or partition over
ranks. Above millions of groups, group numbers are drawn directly, at a cost independent of the
corpus size.
[Phase 1 GMM Fitting]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import generator, hash_array, key

Ints = NDArray[np.int64]

_LARGEST_GROUP = 50  # frames per group
_FEWEST_GROUPS = 4000  # so that a small sample covers many windows
_MOST_HASHED = 5_000_000  # groups; above this, group numbers are drawn directly


@dataclass(frozen=True)
class FrameSample:
    """`window_M`: the windows to decode, ascending; `frames_M`: the frames to take from each,
    ascending."""

    window_M: Ints
    frames_M: tuple[Ints, ...]

    @property
    def total(self) -> int:
        return sum(len(frames) for frames in self.frames_M)


def draw_frames(
    num_frames_N: Ints, id_N: Ints, wanted: int, *, seed: int, fewest_groups: int | None = None
) -> FrameSample:
    """Samples about `wanted` frames uniformly over all windows; all frames if there are fewer.

    `num_frames_N`: frames per window; `id_N`: window ids for the hash. `fewest_groups` (default
    4,000): minimum number of groups of a small sample; each group requires decoding a window.
    """
    group_size = int(np.clip(wanted // (fewest_groups or _FEWEST_GROUPS), 1, _LARGEST_GROUP))
    groups_N = -(-num_frames_N // group_size)
    if int(num_frames_N.sum()) <= wanted:
        chosen = np.arange(int(groups_N.sum()))
    elif int(groups_N.sum()) > _MOST_HASHED:
        chosen = _drawn_numbers(int(groups_N.sum()), int(num_frames_N.sum()), wanted, seed)
    else:
        chosen = _smallest_hashes(groups_N, id_N, num_frames_N, group_size, wanted, seed)
    first_N = np.cumsum(groups_N) - groups_N
    window_of = np.searchsorted(first_N, chosen, side="right") - 1
    taken: dict[int, list[Ints]] = {}
    for window, group in zip(window_of.tolist(), (chosen - first_N[window_of]).tolist(), strict=True):
        taken.setdefault(window, []).append(np.arange(group, num_frames_N[window], groups_N[window]))
    windows = sorted(taken)
    return FrameSample(
        np.array(windows, dtype=np.int64), tuple(np.sort(np.concatenate(taken[window])) for window in windows)
    )


def _smallest_hashes(groups_N: Ints, id_N: Ints, num_frames_N: Ints, group_size: int, wanted: int, seed: int) -> Ints:
    window = np.repeat(np.arange(len(groups_N)), groups_N)
    group = np.arange(len(window)) - np.repeat(np.cumsum(groups_N) - groups_N, groups_N)
    hashes = hash_array(key(seed, "reservoir"), id_N[window], group)
    order = np.argsort(hashes, kind="stable")
    sizes = -(-(num_frames_N[window] - group) // groups_N[window])  # frames group, group + G, group + 2G, …
    count = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    return np.sort(order[:count])


def _drawn_numbers(groups: int, frames: int, wanted: int, seed: int) -> Ints:
    """Distinct random group numbers with about `wanted` frames in total, at a cost of O(wanted)."""
    count = round(wanted * groups / frames)
    rng = generator(seed, "reservoir")
    numbers = np.unique(rng.integers(0, groups, size=count))
    while len(numbers) < count:
        numbers = np.unique(np.concatenate([numbers, rng.integers(0, groups, size=count - len(numbers))]))
    return numbers
