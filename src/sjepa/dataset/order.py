"""Assignment of windows to batches: deterministic, with the same number of batches every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import hash_array, key
from sjepa.dataset.gzip_access import BLOCKS_IN_USE

Ints = NDArray[np.int64]

# lengths within 2 % count as equal and are shuffled without changing the buckets
_LENGTH_GRAIN = 1.02


def shuffled(count: int, *, seed: int, epoch: int, locality_N: Ints | None = None) -> Ints:
    """A permutation of 0 … count−1, keyed by (seed, epoch).

    With `locality_N`, items with equal numbers (≥ 0) form groups and stay close together: groups
    are shuffled, a few consecutive groups are pooled, and items are shuffled within each pool.
    """
    draw_N = hash_array(key(seed, "order", epoch), np.arange(count))
    if locality_N is None or not (locality_N >= 0).any():
        return np.argsort(draw_N, kind="stable")
    # items without locality form groups of one
    group_N = np.where(locality_N >= 0, locality_N, locality_N.max() + 1 + np.arange(count))
    groups, index_N = np.unique(group_N, return_inverse=True)
    rank = np.empty(len(groups), np.int64)
    rank[np.argsort(hash_array(key(seed, "groups", epoch), groups), kind="stable")] = np.arange(len(groups))
    return np.lexsort((draw_N, rank[index_N] // BLOCKS_IN_USE))


def fixed_batches(count: int, batch_size: int, **keys: object) -> list[Ints]:
    """Batches of `batch_size` in shuffled order; the last may be smaller. Keywords as of
    `shuffled`."""
    order = shuffled(count, **keys)  # type: ignore[arg-type]
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def bucketed_batches(length_N: Ints, max_samples: int, *, seed: int, epoch: int) -> list[Ints]:
    """Batches of windows of similar length, at most `max_samples` after padding (a longer window
    forms its own batch).

    Batch boundaries depend on the lengths only; windows of similar length and the order of the
    batches are shuffled every epoch.
    """
    grain_N = np.ceil(np.log(np.maximum(length_N, 1)) / np.log(_LENGTH_GRAIN)).astype(np.int64)
    order = np.lexsort((hash_array(key(seed, "bucket", epoch), np.arange(len(length_N))), grain_N))
    longest_of_grain = {grain: int(length_N[grain_N == grain].max()) for grain in np.unique(grain_N)}
    batches: list[list[int]] = []
    for item in order:
        longest = longest_of_grain[grain_N[item]]
        if not batches or (len(batches[-1]) + 1) * longest > max_samples:
            batches.append([])
        batches[-1].append(int(item))
    mixed = shuffled(len(batches), seed=key(seed, "batches"), epoch=epoch)
    return [np.array(batches[number], dtype=np.int64) for number in mixed]


def in_lanes(shards: Sequence[list[Ints]], lanes: int, *, seed: int, epoch: int) -> list[Ints]:
    """Interleaves the batches of several shards, reading `lanes` shards at a time: batch i is from
    lane i mod `lanes` while all lanes have batches. A lane reads its shards one after another. A
    reader of every n-th batch reads distinct shards if `lanes` is a multiple of n."""
    queues: list[list[Ints]] = [[] for _ in range(lanes)]
    for shard in shuffled(len(shards), seed=key(seed, "shards"), epoch=epoch):
        min(queues, key=len).extend(shards[shard])
    return [batch for row in zip_longest(*queues) for batch in row if batch is not None]


def padding_waste(batches: list[Ints], length_N: Ints) -> float:
    """Padding overhead: padded over real samples, minus 1."""
    padded = sum(len(batch) * int(length_N[batch].max()) for batch in batches)
    return padded / max(1, sum(int(length_N[batch].sum()) for batch in batches)) - 1
