"""Which tokens occur, and how often. T frames, G groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupUsage:
    """Of the tokens of a group: size of the vocabulary, number of different ones that occur, and
    entropy (bit) of their frequencies."""

    vocabulary: int
    used: int
    entropy: float

    @property
    def nominal(self) -> float:
        """Entropy (bit) of tokens that are all equally likely."""
        return float(np.log2(self.vocabulary))

    @property
    def perplexity(self) -> float:
        """Number of equally likely tokens with the same entropy."""
        return float(2**self.entropy)


class TokenUsage:
    """Counts the tokens of every group."""

    def __init__(self, vocabulary: Sequence[int]) -> None:
        self.vocabulary, self.frames = tuple(vocabulary), 0
        self._counts: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in vocabulary]

    def add(self, tokens_TG: NDArray[np.int32]) -> None:
        self.frames += len(tokens_TG)
        for group, (tokens, counts) in enumerate(self._counts):
            found, new = np.unique(tokens_TG[:, group], return_counts=True)
            merged, place = np.unique(np.concatenate([tokens, found]), return_inverse=True)
            totals = np.zeros(len(merged), np.int64)
            np.add.at(totals, place, np.concatenate([counts, new]))
            self._counts[group] = (merged, totals)

    def groups(self) -> list[GroupUsage]:
        """Raises ValueError if nothing was added."""
        if not self.frames:
            raise ValueError("no tokens")
        found = []
        for size, (_, counts) in zip(self.vocabulary, self._counts, strict=True):
            share = counts / counts.sum()
            found.append(GroupUsage(size, len(counts), float(-(share * np.log2(share)).sum())))
        return found


def usage_table(groups: Sequence[GroupUsage]) -> str:
    """A line per group."""
    used, entropy = f"{'used':>7} {'share':>7}", f"{'entropy, bit':>12} {'of':>6}"
    lines = [f"{'group':>5} {'vocabulary':>10} {used} {'perplexity':>10} {'share':>7} {entropy}"]
    for number, group in enumerate(groups):
        used = f"{group.used:>7,} {group.used / group.vocabulary:>7.1%}"
        spread = f"{group.perplexity:>10.1f} {group.perplexity / group.vocabulary:>7.1%}"
        lines.append(
            f"{number:>5} {group.vocabulary:>10,} {used} {spread} {group.entropy:>12.2f} {group.nominal:>6.2f}"
        )
    return "\n".join(lines)


def entropy_line(groups: Sequence[GroupUsage], frames_per_second: float) -> str:
    entropy, nominal = (
        frames_per_second * sum(values)
        for values in ([group.entropy for group in groups], [group.nominal for group in groups])
    )
    return f"entropy of the groups, each by itself: {entropy:,.0f} bit/s, nominal {nominal:,.0f}"
