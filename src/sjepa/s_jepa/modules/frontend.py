"""The convolutional frontend: raw audio to 20 ms frames. [Architecture Details]

B batch, S samples, P positions after the first convolution, T frames, C channels.

Everything after the first convolution is channels-last: matrix products on a CPU, a
two-dimensional convolution on [B, C, 1, T] on a GPU. The first convolution and its group norm are
fused: the norm's statistics follow from the mean and covariance of the 10-sample patches (y = w·p,
so E[y] = w·E[p] and Var[y] = wᵀ Cov[p] w), and the normalised output is a single matrix product per
clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sjepa.core.frames import FrameGeometry
from sjepa.modules.strided_convolution import strided_convolution

_GPU_VALUES, _GPU_SLICE = 1 << 28, 1 << 11
_CPU_VALUES = 1 << 20  # 4 MiB in float32


class PatchStatistics(NamedTuple):
    """Mean [B, k] and covariance [B, k, k] of a clip's first-layer patches, float32."""

    mean_Bk: Tensor
    covariance_Bkk: Tensor


class ConvLayer(nn.Module):
    """Parameters of one convolution and, in the first layer, its group norm (names as in
    `transformers`)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, *, normalised: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        if normalised:
            self.layer_norm = nn.GroupNorm(channels, channels)


class Frontend(nn.Module):
    """Seven convolutions without bias, GELU after each, group norm per channel after the first."""

    def __init__(self, channels: int, *, geometry: FrameGeometry) -> None:
        super().__init__()
        self.geometry, self.num_channels = geometry, channels
        self.mel_statistics = None
        sizes = zip(geometry.kernels, geometry.strides, strict=True)
        self.conv_layers: Any = nn.ModuleList(
            ConvLayer(channels if index else 1, channels, kernel, stride, normalised=index == 0)
            for index, (kernel, stride) in enumerate(sizes)
        )

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None = None) -> Tensor:
        """Features [B, T, C]. Group-norm statistics exclude padding, unless given as
        `statistics`."""
        patches_BPk = waveform_BS.unfold(1, self.geometry.kernels[0], self.geometry.strides[0])
        if statistics is None:
            statistics = self.statistics(waveform_BS, num_samples_B)
        if waveform_BS.device.type == "cpu":
            return self._by_matrix_products(patches_BPk, statistics)
        x_BPC = self._first_layer(patches_BPk, statistics, patches_BPk.shape[1])
        x = x_BPC.transpose(1, 2).unsqueeze(2)  # [B, C, 1, P], channels last in memory
        for layer in self.conv_layers[1:]:
            conv = layer.conv
            weight = conv.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            x = F.gelu(F.conv2d(x, weight, stride=(1, conv.stride[0])))
        return x.squeeze(2).transpose(1, 2)

    def _by_matrix_products(self, patches_BPk: Tensor, statistics: PatchStatistics) -> Tensor:
        """Every layer on the rows of all clips, padded to whole frames: outputs across the end of a
        clip are beyond its last frame."""
        batch, positions, _ = patches_BPk.shape
        whole = math.prod(self.geometry.strides[1:])
        padded = -(-positions // whole) * whole
        x_NC = self._first_layer(patches_BPk, statistics, padded).flatten(0, 1)
        for layer in self.conv_layers[1:]:
            positions = (positions - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            x_NC = F.gelu(strided_convolution(x_NC, layer.conv.weight, layer.conv.stride[0]))
        return x_NC.view(batch, padded // whole, -1)[:, :positions]

    def statistics(self, waveform_BS: Tensor, num_samples_B: Tensor) -> PatchStatistics:
        """Statistics for the group norm of each clip, over its patches without padding."""
        with torch.no_grad(), torch.autocast(waveform_BS.device.type, enabled=False):
            patches_BPk = waveform_BS.float().unfold(1, self.geometry.kernels[0], self.geometry.strides[0])
            count_B = self.geometry.first_layer_frames(num_samples_B)
            real_BP1 = (torch.arange(patches_BPk.shape[1], device=count_B.device) < count_B[:, None])[..., None]
            count_B1 = count_B[:, None].clamp(min=1)
            mean_Bk = (patches_BPk * real_BP1).sum(1) / count_B1
            centred_BPk = (patches_BPk - mean_Bk[:, None]) * real_BP1
            covariance_Bkk = _products(centred_BPk) / count_B1[..., None]
        return PatchStatistics(mean_Bk, covariance_Bkk)

    def first_layer(self, statistics: PatchStatistics) -> tuple[Tensor, Tensor]:
        """First convolution with the group norm folded in: kernel [B, C, k] and shift [B, C] per
        clip, float32."""
        first = self.conv_layers[0]
        norm = first.layer_norm
        weight_Ck = first.conv.weight.float().squeeze(1)
        mean_BC = (weight_Ck @ statistics.mean_Bk.T).T  # int8 export quantises constants on the right
        variance_BC = ((weight_Ck @ statistics.covariance_Bkk) * weight_Ck).sum(-1)
        scale_BC = norm.weight.float() * torch.rsqrt(variance_BC + norm.eps)
        return weight_Ck * scale_BC[..., None], norm.bias.float() - mean_BC * scale_BC

    def _first_layer(self, patches_BPk: Tensor, statistics: PatchStatistics, rows: int) -> Tensor:
        """Fused convolution, group norm and GELU, computed in float32: [B, P, k] → [B, rows, C],
        zero beyond P, in the autocast dtype, or else that of the weights."""
        device, own = patches_BPk.device.type, self.conv_layers[0].conv.weight.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        with torch.autocast(device, enabled=False):
            kernel_BCk, shift_BC = self.first_layer(statistics)
            patches = F.pad(patches_BPk.float(), (0, 1), value=1.0)  # for the shift
            kernel = torch.cat([kernel_BCk, shift_BC[..., None]], dim=2)
            if device == "cuda" and dtype.itemsize == 2:
                patches, kernel = _in_two_parts(patches, kernel, dtype)
            return _ProductGELU.apply(patches, kernel, dtype, rows)  # type: ignore[no-any-return, no-untyped-call]


def _products(x_BPk: Tensor) -> Tensor:
    """xᵀx of each clip, [B, k, k]. On a GPU in slices, since one product per clip leaves most of it
    idle."""
    if x_BPk.device.type == "cuda":
        x_BPk = F.pad(x_BPk, (0, 0, 0, -x_BPk.shape[1] % _GPU_SLICE)).unflatten(1, (-1, _GPU_SLICE))
        return (x_BPk.transpose(2, 3) @ x_BPk).sum(1)
    return x_BPk.transpose(1, 2) @ x_BPk


def _in_two_parts(patches_BPk: Tensor, kernel_BCk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors in `dtype` (bf16, fp16) whose product is almost that of the float32 ones: each value
    is the sum of a rounded one and the rest, and of the four products the three largest are
    kept."""
    return _Parts.apply(patches_BPk, dtype, (0, 1, 0)), _Parts.apply(kernel_BCk, dtype, (0, 0, 1))  # type: ignore[no-untyped-call]


class _Parts(torch.autograd.Function):
    """[…, k] → […, 3k and zeros up to a multiple of 8]: for each entry of `chosen` the rounded
    values (0) or their rest (1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, chosen: tuple[int, ...]) -> Tensor:
        ctx.chosen, ctx.width = chosen, x.shape[-1]
        rounded = x.to(dtype)
        parts = rounded, (x - rounded.float()).to(dtype)
        both = torch.cat([parts[index] for index in chosen], dim=-1)
        return F.pad(both, (0, -both.shape[-1] % 8))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        pieces = gradient.float().split(ctx.width, dim=-1)
        return sum(piece for piece, index in zip(pieces, ctx.chosen, strict=False) if index == 0), None, None  # type: ignore[return-value]


class _ProductGELU(torch.autograd.Function):
    """gelu(patches · kernelᵀ), computed in tiles so that float32 values stay in the CPU cache: this
    is the largest activation of the network and memory-bound. The product is recomputed in the
    backward pass."""

    @staticmethod
    def forward(ctx: Any, patches_BPk: Tensor, kernel_BCk: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
        ctx.save_for_backward(patches_BPk, kernel_BCk)
        batch, positions, _ = patches_BPk.shape
        out_BPC = torch.empty(batch, rows, kernel_BCk.shape[1], dtype=dtype, device=patches_BPk.device)
        out_BPC[:, positions:] = 0
        for clips, piece in _pieces(patches_BPk, kernel_BCk.shape[1]):
            own, kernels = patches_BPk[clips, piece], kernel_BCk[clips].transpose(1, 2)
            if dtype == own.dtype:
                torch.ops.aten.gelu_(torch.bmm(own, kernels, out=out_BPC[clips, piece]))
            else:
                out_BPC[clips, piece] = F.gelu(torch.bmm(own, kernels))
        return out_BPC

    @staticmethod
    def backward(ctx: Any, gradient_BPC: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # type: ignore[override]
        patches_BPk, kernel_BCk = ctx.saved_tensors
        kernel_gradient_BCk = torch.zeros_like(kernel_BCk)
        patch_gradient_BPk = torch.empty_like(patches_BPk) if ctx.needs_input_grad[0] else None
        for clips, piece in _pieces(patches_BPk, kernel_BCk.shape[1]):
            own, kernels = patches_BPk[clips, piece], kernel_BCk[clips]
            inside_BPC = torch.bmm(own, kernels.transpose(1, 2))
            inner_BPC = torch.ops.aten.gelu_backward(gradient_BPC[clips, piece].to(inside_BPC), inside_BPC)
            kernel_gradient_BCk[clips].baddbmm_(inner_BPC.transpose(1, 2), own)
            if patch_gradient_BPk is not None:
                torch.bmm(inner_BPC, kernels, out=patch_gradient_BPk[clips, piece])
        return patch_gradient_BPk, kernel_gradient_BCk, None, None


def _pieces(patches_BPk: Tensor, channels: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of clips and positions. On a GPU: as many clips as fit in 1 GiB; fake tensors: one
    tile."""
    batch, positions, _ = patches_BPk.shape
    if isinstance(patches_BPk, FakeTensor):
        yield slice(None), slice(0, positions)
        return
    if patches_BPk.device.type != "cpu":
        clips = max(1, _GPU_VALUES // (positions * channels))
        yield from ((slice(start, start + clips), slice(0, positions)) for start in range(0, batch, clips))
        return
    step = max(1, _CPU_VALUES // channels)
    for clip in range(batch):
        for start in range(0, positions, step):
            yield slice(clip, clip + 1), slice(start, min(start + step, positions))
