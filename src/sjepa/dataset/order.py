"""Which windows make which batch in which epoch: the same on every machine, and the same number in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import hash_array, key
from sjepa.dataset.gzip_access import BLOCKS_IN_USE

Ints = NDArray[np.int64]

_LENGTH_GRAIN = 1.02  # lengths within 2 % count as equal, so that epochs can shuffle without changing the buckets


def shuffled(count: int, *, seed: int, epoch: int, locality_N: Ints | None = None) -> Ints:
    """A permutation of 0 … count−1, keyed by (seed, epoch).

    With `locality_N`, items of one number (≥ 0) come near each other: groups are shuffled, a few of them at a time are
    pooled, and items are shuffled inside the pool.
    """
    draw_N = hash_array(key(seed, "order", epoch), np.arange(count))
    if locality_N is None or not (locality_N >= 0).any():
        return np.argsort(draw_N, kind="stable")
    # items that lie nowhere in particular form groups of their own
    group_N = np.where(locality_N >= 0, locality_N, locality_N.max() + 1 + np.arange(count))
    groups, index_N = np.unique(group_N, return_inverse=True)
    rank = np.empty(len(groups), np.int64)
    rank[np.argsort(hash_array(key(seed, "groups", epoch), groups), kind="stable")] = np.arange(len(groups))
    return np.lexsort((draw_N, rank[index_N] // BLOCKS_IN_USE))


def fixed_batches(count: int, batch_size: int, **keys: object) -> list[Ints]:
    """Batches of `batch_size` in shuffled order (the last one may be smaller). Keywords as for `shuffled`."""
    order = shuffled(count, **keys)  # type: ignore[arg-type]
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def bucketed_batches(length_N: Ints, max_samples: int, *, seed: int, epoch: int) -> list[Ints]:
    """Batches of windows of like length, each at most `max_samples` when padded (one longer window goes alone).

    Where a batch ends depends on the lengths alone; which of the windows of like length are in it, and the order of the
    batches, change with the epoch.
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
    """The batches of several shards, `lanes` of which are open at a time: batch i comes from lane i mod `lanes` as long as
    all lanes have any. A lane goes through one shard after the other; who takes every n-th batch, `lanes` being a multiple
    of n, meets shards of their own."""
    queues: list[list[Ints]] = [[] for _ in range(lanes)]
    for shard in shuffled(len(shards), seed=key(seed, "shards"), epoch=epoch):
        min(queues, key=len).extend(shards[shard])
    return [batch for row in zip_longest(*queues) for batch in row if batch is not None]


def padding_waste(batches: list[Ints], length_N: Ints) -> float:
    """Padded samples over real ones, minus 1."""
    padded = sum(len(batch) * int(length_N[batch].max()) for batch in batches)
    return padded / max(1, sum(int(length_N[batch].sum()) for batch in batches)) - 1
