"""Gradient scaling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Identity in the forward pass; multiplies the gradient by `factor` in the backward pass."""
    return x if factor == 1.0 else _ScaleGradient.apply(x, factor)  # type: ignore[no-any-return,no-untyped-call]
