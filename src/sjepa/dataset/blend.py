"""Weighted sampling of windows from several corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import hash_array, key

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Blend:
    """An epoch has as many draws as there are windows in total, divided over corpora by their
    shares.

    Each corpus is sampled without replacement: all its windows are used once, in shuffled order,
    before any is repeated, within or across epochs.
    """

    corpus_M: Ints  # corpus index of every window
    shares: tuple[float, ...]  # weight of every corpus, not necessarily normalised
    seed: int

    def draws(self) -> Ints:
        """Number of windows per epoch of each corpus."""
        exact = np.array(self.shares) / sum(self.shares) * len(self.corpus_M)
        counts = np.floor(exact).astype(np.int64)
        left = len(self.corpus_M) - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        return counts

    def draw(self, epoch: int) -> Ints:
        """Window indices of an epoch, possibly with repetitions."""
        drawn = [self._of_corpus(number, count, epoch) for number, count in enumerate(self.draws().tolist())]
        return np.concatenate(drawn)

    def _of_corpus(self, number: int, count: int, epoch: int) -> Ints:
        own = np.flatnonzero(self.corpus_M == number)
        first, parts = epoch * count, []  # offset in the concatenated passes over the corpus
        while count > 0:
            turn, start = divmod(first, len(own))
            order = own[np.argsort(hash_array(key(self.seed, "corpus", number, turn), own), kind="stable")]
            parts.append(order[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else own[:0]


def turns(batches: Sequence[Ints]) -> list[Ints]:
    """For every window of every batch, its number of earlier occurrences in the epoch."""
    flat = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    order = np.argsort(flat, kind="stable")
    first = np.flatnonzero(np.diff(flat[order], prepend=-1))
    turn = np.empty(len(flat), np.int64)
    turn[order] = np.arange(len(flat)) - np.repeat(first, np.diff(first, append=len(flat)))
    return np.split(turn, np.cumsum([len(batch) for batch in batches])[:-1]) if batches else []
