"""Strided convolution on a CPU as matrix products, without copies of the input.

N rows, C channels, O outputs, K kernel, S stride. S consecutive rows of a channels-last sequence
are one row of a matrix, so the first S taps are one product; those beyond the stride a second, with
the next row. (torch's own kernels reach 130 to 150 GFLOP/s in float32 on a CPU whose matrix
products reach 300.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def strided_convolution(x_NC: Tensor, weight_OCK: Tensor, stride: int) -> Tensor:
    """[N, C] → [N / stride, O], unpadded: row i sees the input rows from i·stride to i·stride +
    K − 1, those behind the end as zeros. Computed in the dtype of `x_NC`.

    Several clips may be rows of one sequence: outputs whose kernel reaches beyond a clip see the
    next clip and are to be ignored. Raises ValueError unless `stride` divides N and K ≤ 2·stride.
    """
    if len(x_NC) % stride or weight_OCK.shape[2] > 2 * stride:
        raise ValueError(f"{len(x_NC)} rows, kernel {weight_OCK.shape[2]}, stride {stride}")
    with torch.autocast("cpu", enabled=False):
        return _StridedConvolution.apply(x_NC, weight_OCK.to(x_NC.dtype), stride)  # type: ignore[no-any-return, no-untyped-call]


class _StridedConvolution(torch.autograd.Function):
    """Kernels as matrices: `first` the taps within the stride, `second` those beyond it."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_OCK: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_NC, weight_OCK)
        ctx.stride = stride
        rows, first, second = _matrices(x_NC, weight_OCK, stride)
        y_NO = rows[:, : first.shape[1]] @ first.T
        if second.numel():
            y_NO[:-1].addmm_(rows[1:, : second.shape[1]], second.T)
        return y_NO

    @staticmethod
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x_NC, weight_OCK = ctx.saved_tensors
        rows, first, second = _matrices(x_NC, weight_OCK, ctx.stride)
        within, beyond = first.shape[1], second.shape[1]
        x_gradient = torch.empty_like(rows)
        if within == rows.shape[1]:
            torch.mm(gradient_NO, first, out=x_gradient)
        else:  # a stride beyond the kernel
            x_gradient[:, :within] = gradient_NO @ first
            x_gradient[:, within:] = 0
        gradients = [gradient_NO.T @ rows[:, :within]]
        if beyond:
            x_gradient[1:, :beyond].addmm_(gradient_NO[:-1], second)
            gradients.append(gradient_NO[:-1].T @ rows[1:, :beyond])
        weight_gradient = torch.cat(gradients, dim=1).view(len(weight_OCK), -1, x_NC.shape[1])
        return x_gradient.view_as(x_NC), weight_gradient.transpose(1, 2), None


def _matrices(x_NC: Tensor, weight_OCK: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of `stride` steps, and the kernel's taps within and beyond the stride, [O, taps · C]."""
    by_tap = weight_OCK.transpose(1, 2)
    first, second = by_tap[:, :stride].flatten(1), by_tap[:, stride:].flatten(1)
    return x_NC.view(-1, stride * x_NC.shape[1]), first, second
