"""Discriminators of audio: multi-period and multi-scale (Kong et al. 2020), and of complex spectra
(Défossez et al. 2022). B batch, S samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_SLOPE = 0.1  # of leaky ReLU


class Judged(NamedTuple):
    """`scores`: near 1 for what is held for real; `features`: outputs of the layers before. The
    first dimension has the clips in order, perhaps several entries of each."""

    scores: Tensor
    features: tuple[Tensor, ...]

    def halves(self) -> tuple[Judged, Judged]:
        """Of two batches of clips that were judged as one."""
        pairs = [item.chunk(2) for item in (self.scores, *self.features)]
        first, second = zip(*pairs, strict=True)
        return Judged(first[0], first[1:]), Judged(second[0], second[1:])


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
    """Convolutions with leaky ReLU; the last gives the scores."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def _judged(self, x: Tensor) -> Judged:
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return Judged(self.layers[-1](x), tuple(features))


class PeriodDiscriminator(_Judge):
    """Compares samples that are `period` apart: convolutions over each of the `period` sequences of
    every period-th sample, as if they were clips (the reference's kernels of width 1)."""

    def __init__(self, period: int, channels: int) -> None:
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels]
        down: list[nn.Module] = [nn.Conv1d(before, after, 5, 3, 2) for before, after in itertools.pairwise(widths)]
        last = widths[-1]
        super().__init__([*down, nn.Conv1d(last, last, 5, 1, 2), nn.Conv1d(last, 1, 3, 1, 1)])
        self.period = period

    def forward(self, audio_BS: Tensor) -> Judged:
        padded_BS = F.pad(audio_BS, (0, -audio_BS.shape[1] % self.period))
        return self._judged(padded_BS.unflatten(1, (-1, self.period)).transpose(1, 2).flatten(0, 1)[:, None])


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
        self.factor = factor

    def forward(self, audio_BS: Tensor) -> Judged:
        x_B1S = audio_BS[:, None]
        for _ in range(self.factor.bit_length() - 1):
            x_B1S = F.avg_pool1d(x_B1S, 4, 2, 2)
        return self._judged(x_B1S)


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

    def forward(self, audio_BS: Tensor) -> Judged:
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
        return self._judged(torch.view_as_real(spectrum_BFT).permute(0, 3, 2, 1))


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

    def forward(self, audio_BS: Tensor) -> list[Judged]:
        return [judge(audio_BS) for judge in self.all]
