"""Dropout with fast random numbers on CPU, where torch's generator takes most of the time of its
dropout and a third of a transformer's.

Masks are drawn by NumPy from a seed of torch's default generator, 8 bits per element: the rate of a
mask is one of the two neighbouring multiples of 1/256, at random, so that it is right on average.
Rates near 0 and 1 take 16 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_COARSE = 1 / 32  # rates from here to 1 − 1/32 take 8 bits


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeroes elements with `probability` (near 0 and 1 accurate to 1/131,072) and scales the others
    by the inverse of the share kept. Uses torch's default generator of the device."""
    if probability == 0:
        return x
    if x.device.type != "cpu" or probability == 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    kept, scale = Masks(probability, seed=new_seed(x)).draw(x)
    return _Scaled.apply(x, kept, scale)  # type: ignore[no-any-return, no-untyped-call]


def new_seed(x: Tensor) -> int:
    """A seed from torch's default generator, which fake tensors leave alone."""
    return 0 if isinstance(x, FakeTensor) else int(torch.randint(1 << 62, ()))


class Masks:
    """Dropout masks of CPU tensors, the same sequence for the same seed."""

    def __init__(self, probability: float, *, seed: int) -> None:
        self._is_coarse = _COARSE <= probability <= 1 - _COARSE
        self._integer = np.int8 if self._is_coarse else np.int16
        self._levels = 1 << 8 * np.dtype(self._integer).itemsize
        self._dropped = probability * self._levels
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def draw(self, like: Tensor) -> tuple[Tensor, float]:
        """Zeros and ones of the shape and dtype of `like`, and the scale of what is kept."""
        rounding = self._generator.random() if self._is_coarse else 0.5
        dropped = min(math.floor(self._dropped + rounding), self._levels - 1)
        kept, scale = (
            torch.empty_like(like, memory_format=torch.contiguous_format),
            self._levels / (self._levels - dropped),
        )
        if isinstance(like, FakeTensor):
            return kept, scale
        count = -(-like.numel() * np.dtype(self._integer).itemsize // 8)
        numbers = self._generator.integers(1 << 64, size=count, dtype=np.uint64).view(self._integer)
        draws = torch.from_numpy(numbers[: like.numel()]).view(like.shape)
        return torch.ge(draws, dropped - self._levels // 2, out=kept), scale


class _Scaled(torch.autograd.Function):
    """x · kept · scale, with one new tensor in forward and one in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None


class Dropout(nn.Module):
    """`dropout` in training mode, identity in evaluation mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability) if self.training else x

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
