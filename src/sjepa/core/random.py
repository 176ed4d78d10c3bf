"""Stateless keyed randomness: draws depend on a key only, not on earlier draws.

Every draw is keyed by (seed, name, …): the same key gives the same numbers in any process, after a
resume and with any number of workers. Two forms: a generator per key, and a vectorised
counter-based hash for arrays.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

# splitmix64 (Steele, Lea & Flood 2014): increment and the two mixing multipliers
_INCREMENT, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*parts: int | str) -> int:
    """A 63-bit key for a sequence of integers and strings."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for a key."""
    return np.random.Generator(np.random.Philox(key(*parts)))


def hash_array(base: int, *counters: ArrayLike) -> NDArray[np.uint64]:
    """Uniform 64-bit hashes of broadcast integer counters under the key `base`."""
    state = np.uint64(base)
    with np.errstate(over="ignore"):
        for counter in counters:
            state = np.asarray(counter).astype(np.int64).astype(np.uint64) + np.uint64(_INCREMENT) * (
                np.uint64(1) + state
            )
            state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX1)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX2)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform_tensor(base: int, *counters: torch.Tensor) -> torch.Tensor:
    """U(0, 1) float32 for broadcast int64 counters, on their device; same hash as `hash_array`."""
    import torch

    def signed(value: int) -> int:
        return value - (1 << 64) if value >= 1 << 63 else value

    def shift(value: torch.Tensor, bits: int) -> torch.Tensor:  # logical, int64 shifts are arithmetic
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    state = torch.full((), signed(base), dtype=torch.int64, device=counters[0].device)
    for counter in counters:
        state = counter + (state + 1) * signed(_INCREMENT)
        state = (state ^ shift(state, 30)) * signed(_MIX1)
        state = (state ^ shift(state, 27)) * signed(_MIX2)
        state = state ^ shift(state, 31)
    return shift(state, 40).to(torch.float32) * 2.0**-24
