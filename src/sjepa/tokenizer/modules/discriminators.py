"""Discriminators of audio: multi-period and multi-scale (Kong et al. 2020), and of complex spectra
(Défossez et al. 2022). B batch, S samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_SLOPE = 0.1  # of leaky ReLU


class Judged(NamedTuple):
    """`scores`: near 1 for what is held for real; `features`: outputs of the layers before. The
    first dimension has the clips in order, perhaps several entries of each. Both are 0 in the
    padding, which `masks`, of the scores and of all features (None: no clip is padded), tell from
    the rest."""

    scores: Tensor
    features: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...] = ()

    def halves(self) -> tuple[Judged, Judged]:
        """Of two batches of clips that were judged as one."""
        pairs = [item.chunk(2) for item in (self.scores, *self.features)]
        first, second = zip(*pairs, strict=True)
        masks = [(None, None) if mask is None else mask.chunk(2) for mask in self.masks]
        own, other = (tuple(mask[side] for mask in masks) for side in (0, 1))
        return Judged(first[0], first[1:], own), Judged(second[0], second[1:], other)

    def mean(self, values: Tensor, place: int) -> Tensor:
        """Of real entries; `place`: 0 for values like the scores, 1 … for those like features."""
        mask = self.masks[place] if self.masks else None
        if mask is None:
            return values.mean()
        return (values * mask).sum() / (mask.sum() * (values[0].numel() / mask[0].numel()))


@dataclass(frozen=True)
class DiscriminatorShape:
    """`periods` (samples) of the multi-period part, number of `scales`, each at half the rate of
    the one before, `windows` (samples) of the complex spectra; `channels` of the first layers."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    scales: int = 3
    windows: tuple[int, ...] = ()
    channels: int = 32


class FoldedConv1d(nn.Conv1d):
    """A convolution whose strides become channels before it on a CPU: the same sums, twice as fast
    with many groups (zero padding, no dilation)."""

    def forward(self, input: Tensor) -> Tensor:
        (stride,), (kernel,), steps = self.stride, self.kernel_size, input.shape[2]
        if stride == 1 or input.device.type != "cpu":
            return super().forward(input)
        assert isinstance(self.padding[0], int)
        before, taps = self.padding[0], -(-kernel // stride)
        count = (steps + 2 * before - kernel) // stride + 1
        input_BCT = F.pad(input, (before, (count + taps - 1) * stride - steps - before))
        weight_OCK = F.pad(self.weight, (0, taps * stride - kernel))
        folded_BCT, folded_OCK = (
            values.unflatten(2, (-1, stride)).transpose(2, 3).flatten(1, 2) for values in (input_BCT, weight_OCK)
        )
        return F.conv1d(folded_BCT, folded_OCK, self.bias, groups=self.groups)


class _Judge(nn.Module):
    """Convolutions over time, perhaps over frequencies too, with leaky ReLU; the last gives the
    scores. What comes after the end of a clip is 0 at every layer, as if the clip were alone."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def _judged(self, x: Tensor, length_B: Tensor | None) -> Judged:
        """`x`: [B, C, T] or [B, C, T, F]; `length_B`: real steps of T (None: all)."""
        found: list[Tensor] = []
        masks: list[Tensor | None] = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            mask = None
            if length_B is not None:
                length_B = _steps(length_B, layer)
                mask = _mask(length_B, x)
                x = x * mask
            if number + 1 < len(self.layers):
                x = F.leaky_relu(x, _SLOPE)
            found.append(x)
            masks.append(mask)
        return Judged(found[-1], tuple(found[:-1]), (masks[-1], *masks[:-1]))


def _steps(length_B: Tensor, layer: Any) -> Tensor:
    """Real steps after a convolution or pooling, along its first dimension."""
    kernel, stride, padding, dilation = (
        own[0] if isinstance(own, tuple) else own
        for own in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
    )
    return (length_B + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _mask(length_B: Tensor, like: Tensor) -> Tensor:
    """Ones and zeros, [B, 1, T] or [B, 1, T, 1]."""
    mask_BT = (torch.arange(like.shape[2], device=like.device) < length_B[:, None]).to(like.dtype)
    return mask_BT.reshape(len(like), 1, -1, *[1] * (like.dim() - 3))


class PeriodDiscriminator(_Judge):
    """Compares samples that are `period` apart: convolutions over each of the `period` sequences of
    every period-th sample, as if they were clips (the reference's kernels of width 1)."""

    def __init__(self, period: int, channels: int) -> None:
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels]
        down: list[nn.Module] = [nn.Conv1d(before, after, 5, 3, 2) for before, after in itertools.pairwise(widths)]
        last = widths[-1]
        super().__init__([*down, nn.Conv1d(last, last, 5, 1, 2), nn.Conv1d(last, 1, 3, 1, 1)])
        self.period = period

    def forward(self, audio_BS: Tensor, length_B: Tensor | None = None) -> Judged:
        padded_BS = F.pad(audio_BS, (0, -audio_BS.shape[1] % self.period))
        if length_B is not None:
            length_B = (-(-length_B // self.period)).repeat_interleave(self.period)
        rows_B1T = padded_BS.unflatten(1, (-1, self.period)).transpose(1, 2).flatten(0, 1)[:, None]
        return self._judged(rows_B1T, length_B)


class ScaleDiscriminator(_Judge):
    """Audio at a `factor`-th of its rate."""

    def __init__(self, factor: int, channels: int) -> None:
        widths = [4 * channels, 4 * channels, 8 * channels, 16 * channels, 32 * channels, 32 * channels]
        strides, groups = (2, 2, 4, 4, 1), (4, 16, 16, 16, 16)
        middle: list[nn.Module] = [
            FoldedConv1d(before, after, 41, stride, 20, groups=group)
            for before, after, stride, group in zip(widths[:-1], widths[1:], strides, groups, strict=True)
        ]
        last = widths[-1]
        super().__init__(
            [nn.Conv1d(1, widths[0], 15, 1, 7), *middle, nn.Conv1d(last, last, 5, 1, 2), nn.Conv1d(last, 1, 3, 1, 1)]
        )
        self.factor, self.pool = factor, nn.AvgPool1d(4, 2, 2)

    def forward(self, audio_BS: Tensor, length_B: Tensor | None = None) -> Judged:
        x_B1S = audio_BS[:, None]
        for _ in range(self.factor.bit_length() - 1):
            x_B1S = self.pool(x_B1S)
            if length_B is not None:
                length_B = _steps(length_B, self.pool)
                x_B1S = x_B1S * _mask(length_B, x_B1S)
        return self._judged(x_B1S, length_B)


class SpectrumDiscriminator(_Judge):
    """Real and imaginary part of an STFT as an image of two channels."""

    window_W: Tensor

    def __init__(self, size: int, channels: int) -> None:
        down: list[nn.Module] = [
            nn.Conv2d(channels, channels, (3, 9), (1, 2), (dilation, 4), (dilation, 1)) for dilation in (1, 2, 4)
        ]
        super().__init__(
            [
                nn.Conv2d(2, channels, (3, 9), 1, (1, 4)),
                *down,
                nn.Conv2d(channels, channels, 3, 1, 1),
                nn.Conv2d(channels, 1, 3, 1, 1),
            ]
        )
        self.register_buffer("window_W", torch.hann_window(size), persistent=False)

    def forward(self, audio_BS: Tensor, length_B: Tensor | None = None) -> Judged:
        size = len(self.window_W)
        spectrum_BFT = torch.stft(
            audio_BS.float(),
            size,
            size // 4,
            window=self.window_W,
            normalized=True,
            pad_mode="constant",
            return_complex=True,
        )
        x_B2TF = torch.view_as_real(spectrum_BFT).permute(0, 3, 2, 1)
        if length_B is not None:
            length_B = length_B // (size // 4) + 1
            x_B2TF = x_B2TF * _mask(length_B, x_B2TF)
        return self._judged(x_B2TF, length_B)


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self, shape: DiscriminatorShape) -> None:
        super().__init__()
        self.shape = shape
        self.all = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, shape.channels) for period in shape.periods),
                *(ScaleDiscriminator(2**scale, shape.channels) for scale in range(shape.scales)),
                *(SpectrumDiscriminator(window, shape.channels) for window in shape.windows),
            ]
        )

    def forward(self, audio_BS: Tensor, length_B: Tensor | None = None) -> list[Judged]:
        """`audio_BS`: 0 after the end of each clip; `length_B`: their samples (None: all)."""
        return [judge(audio_BS, length_B) for judge in self.all]
