"""Several corpora in given proportions: which windows an epoch draws from each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import hash_array, key

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Blend:
    """An epoch is as long as all windows together; each corpus has its share of them.

    A corpus goes through all its windows in shuffled order before any comes again, over epochs or inside one: a small one
    with a large share several times an epoch, a large one with a small share once in several epochs.
    """

    corpus_M: Ints  # of every window
    shares: tuple[float, ...]  # of every corpus, in any unit
    seed: int

    def draws(self) -> Ints:
        """Windows that an epoch takes of each corpus."""
        exact = np.array(self.shares) / sum(self.shares) * len(self.corpus_M)
        counts = np.floor(exact).astype(np.int64)
        left = len(self.corpus_M) - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        return counts

    def draw(self, epoch: int) -> Ints:
        """The windows of an epoch, some of them more than once."""
        drawn = [self._of_corpus(number, count, epoch) for number, count in enumerate(self.draws().tolist())]
        return np.concatenate(drawn)

    def _of_corpus(self, number: int, count: int, epoch: int) -> Ints:
        own = np.flatnonzero(self.corpus_M == number)
        first, parts = epoch * count, []  # its place in an endless row of passes over the corpus
        while count > 0:
            turn, start = divmod(first, len(own))
            order = own[np.argsort(hash_array(key(self.seed, "corpus", number, turn), own), kind="stable")]
            parts.append(order[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else own[:0]


def turns(batches: Sequence[Ints]) -> list[Ints]:
    """For every window of every batch, how often it came before in the epoch."""
    flat = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    order = np.argsort(flat, kind="stable")
    first = np.flatnonzero(np.diff(flat[order], prepend=-1))
    turn = np.empty(len(flat), np.int64)
    turn[order] = np.arange(len(flat)) - np.repeat(first, np.diff(first, append=len(flat)))
    return np.split(turn, np.cumsum([len(batch) for batch in batches])[:-1]) if batches else []
