"""Grouped convolution with a wide kernel, in the frequency domain.

Overlapping blocks of 2K frames, K the kernel, give K frames of output each (overlap-save). The
transforms are matrix products with K half-integer frequencies, (f + ½) / 2K: none of them is real,
so that all are treated alike. The product of the spectra is one small matrix product per frequency
and group. About a sixth of the operations of the direct form at K = 128, all in matrix products.

B batch, T frames, D width, G groups, C = D / G channels of a group, K kernel, F = K frequencies,
N = 2K frames of a block, P blocks of a clip.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_LEAST_KERNELS = 3  # the spectrum of the kernel costs as much as direct convolution of so many kernels' frames


def pays(x_BTD: Tensor, kernel: int) -> bool:
    """Whether `long_convolution` is faster than torch's own kernels: unless the input is short; not
    while a model is exported. (cuDNN 9 on an H200, bf16, 48 × 15 s: 35 ms against 3.5.)"""
    batch, frames, _ = x_BTD.shape
    return (
        x_BTD.device.type in ("cpu", "cuda")
        and not torch.compiler.is_exporting()
        and batch * frames >= _LEAST_KERNELS * kernel
    )


def long_convolution(x_BTD: Tensor, weight_DCK: Tensor) -> Tensor:
    """`F.conv1d` over time with padding K // 2 and D / C groups, without bias, cut to T frames.

    Computed in float32 (float64 if the weights are); under autocast on a GPU in its dtype, with 1.6
    times the rounding error of direct convolution. Returned in the dtype of `x_BTD`.
    """
    own = torch.promote_types(weight_DCK.dtype, torch.float32)
    if x_BTD.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        own = torch.get_autocast_dtype("cuda")
    with torch.autocast(x_BTD.device.type, enabled=False):
        y_BTD = _LongConvolution.apply(x_BTD.to(own), weight_DCK.to(own))  # type: ignore[no-untyped-call]
    return y_BTD.to(x_BTD.dtype)  # type: ignore[no-any-return]


class _Transforms(NamedTuple):
    """Real and imaginary parts, stacked: of a block, of the kernel, and back to the block's first K
    frames."""

    block_FN: Tensor
    kernel_FK: Tensor
    back_KF: Tensor


def _waves(kernel: int) -> NDArray[np.float64]:
    """[2F, N]."""
    angle_FN = np.outer((np.arange(kernel) + 0.5) * np.pi / kernel, np.arange(2 * kernel))
    return np.concatenate([np.cos(angle_FN), -np.sin(angle_FN)])


def _transforms(kernel: int, like: Tensor) -> _Transforms:
    if isinstance(like, FakeTensor):  # of no use in another `FakeTensorMode`
        return _made.__wrapped__(kernel, like.device, like.dtype)
    return _made(kernel, like.device, like.dtype)


@lru_cache(maxsize=8)
def _made(kernel: int, device: torch.device, dtype: torch.dtype) -> _Transforms:
    with torch.inference_mode(False):
        block_FN = torch.from_numpy(_waves(kernel)).to(device, dtype)
        kernel_FK = block_FN[:, :kernel].contiguous()
        return _Transforms(block_FN, kernel_FK, kernel_FK.T / kernel)


class _LongConvolution(torch.autograd.Function):
    """In a spectrum X[2, F·G, P·B, C] the first axis holds real and imaginary part."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_DCK: Tensor) -> Tensor:
        batch, frames, width = x_BTD.shape
        _, channels, kernel = weight_DCK.shape
        groups, blocks = width // channels, -(-frames // kernel)
        into = _transforms(kernel, x_BTD)
        weight = (into.kernel_FK @ weight_DCK.reshape(-1, kernel).T).view(2, kernel * groups, channels, channels)
        padded_BSD = F.pad(x_BTD, (0, 0, kernel // 2, (blocks + 1) * kernel - kernel // 2 - frames))
        overlapping = padded_BSD.as_strided(
            (2 * kernel, groups, batch, blocks, channels),
            (width, channels, padded_BSD.stride(0), kernel * width, 1),
        )
        x = (into.block_FN @ overlapping.reshape(2 * kernel, -1)).view(2, kernel * groups, batch * blocks, channels)
        y = _product(x, weight.transpose(2, 3), second=-1)  # a correlation
        y_KGBPC = (into.back_KF @ y.view(2 * kernel, -1)).view(kernel, groups, batch, blocks, channels)
        ctx.save_for_backward(x, weight)
        ctx.shape = (batch, frames, width, blocks)
        return y_KGBPC.permute(2, 3, 0, 1, 4).reshape(batch, blocks * kernel, width)[:, :frames]

    @staticmethod
    def backward(ctx: Any, gradient_BTD: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        batch, frames, width, blocks = ctx.shape
        channels = weight.shape[-1]
        groups = width // channels
        kernel = weight.shape[1] // groups
        into = _transforms(kernel, x)
        padded_BSD = F.pad(gradient_BTD, (0, 0, 0, blocks * kernel - frames))
        by_frame = padded_BSD.view(batch, blocks, kernel, groups, channels).permute(2, 3, 0, 1, 4)
        y = (into.back_KF.T @ by_frame.reshape(kernel, -1)).view_as(x)
        weight_gradient = _product(y.transpose(2, 3), x, first=-1)
        weight_gradient_DCK = (weight_gradient.view(2 * kernel, -1).T @ into.kernel_FK).view(width, channels, kernel)
        x_gradient = _product(y, weight)
        halves = (into.block_FN.T @ x_gradient.view(2 * kernel, -1)).view(2, kernel, groups, batch, blocks, channels)
        first, second = halves.permute(0, 3, 4, 1, 2, 5)
        x_gradient_BPKGC = x.new_zeros(batch, blocks + 1, kernel, groups, channels)
        x_gradient_BPKGC[:, :-1] = first
        x_gradient_BPKGC[:, 1:] += second
        return x_gradient_BPKGC.view(batch, -1, width)[:, kernel // 2 :][:, :frames], weight_gradient_DCK


def _product(a: Tensor, b: Tensor, *, first: int = 1, second: int = 1) -> Tensor:
    """Matrix products of complex spectra [2, F·G, …, …]. A factor with −1 is conjugated."""
    (a_real, a_imaginary), (b_real, b_imaginary) = a, b
    out = a.new_empty(2, a.shape[1], a.shape[2], b.shape[3])
    torch.bmm(a_real, b_real, out=out[0])
    out[0].baddbmm_(a_imaginary, b_imaginary, alpha=-first * second)
    out[1].baddbmm_(a_real, b_imaginary, beta=0, alpha=second)
    out[1].baddbmm_(a_imaginary, b_real, alpha=first)
    return out
