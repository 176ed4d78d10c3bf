"""Dropout with fast random numbers on CPU, where torch's generator takes most of the time of its
dropout and a third of a transformer's.

Masks are drawn by NumPy from a seed of torch's default generator, 16 bits per element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_LEVELS = 1 << 16
_DRAWS_IN_NUMBER = 4  # of a 64-bit random number


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeroes elements with `probability` (accurate to 1/131,072) and scales the others by
    1 / (1 − probability). Uses torch's default generator of the device."""
    if probability == 0:
        return x
    if x.device.type != "cpu" or probability == 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    masks = Masks(probability, seed=new_seed(x))
    return _Scaled.apply(x, masks.draw(x), masks.scale)  # type: ignore[no-any-return, no-untyped-call]


def new_seed(x: Tensor) -> int:
    """A seed from torch's default generator, which fake tensors leave alone."""
    return 0 if isinstance(x, FakeTensor) else int(torch.randint(1 << 62, ()))


class Masks:
    """Dropout masks of CPU tensors, the same sequence for the same seed. `scale`: of the elements
    that are kept."""

    def __init__(self, probability: float, *, seed: int) -> None:
        dropped = min(round(probability * _LEVELS), _LEVELS - 1)
        self.scale = _LEVELS / (_LEVELS - dropped)
        self._least = dropped - _LEVELS // 2
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def draw(self, like: Tensor) -> Tensor:
        """Zeros and ones of the shape and dtype of `like`."""
        kept = torch.empty_like(like, memory_format=torch.contiguous_format)
        if isinstance(like, FakeTensor):
            return kept
        count = -(-like.numel() // _DRAWS_IN_NUMBER)
        numbers = self._generator.integers(1 << 64, size=count, dtype=np.uint64).view(np.int16)
        return torch.ge(torch.from_numpy(numbers[: like.numel()]).view(like.shape), self._least, out=kept)


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
