"""Decoders: quantised features to audio. B batch, T frames, D dimensions, S samples, C channels,
F frequencies, W samples of a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.modules.transformer import init_linear
from sjepa.tokenizer.modules.encoder import init_convolution
from sjepa.tokenizer.modules.lengths import Real, real_steps
from sjepa.tokenizer.modules.snake import Snake

_SLOPE = 0.1  # of leaky ReLU
_NEXT_KERNEL, _NEXT_FACTOR = 7, 3  # of ConvNeXt blocks
_LARGEST_LOG, _LEAST_ENVELOPE = 6.0, 1e-3


@dataclass(frozen=True)
class DecoderShape:
    """`hifigan`: `channels` after the first convolution and after each of the `strides`, whose
    product is the hop. `istft`: `blocks` ConvNeXt blocks of the last of `channels` after the
    strides, and an inverse STFT whose hop is `istft_hop`; the hop is the product of both."""

    kind: Literal["hifigan", "istft"]
    code_dim: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    blocks: int = 8
    istft_hop: int = 1

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides) + 1:
            needed = f"{len(self.strides)} strides need {len(self.strides) + 1}"
            raise ValueError(f"decoder_channels: {len(self.channels)} values, but {needed}")
        if min(self.strides, default=2) < 2:
            raise ValueError(f"decoder_strides: {min(self.strides)} is below 2")

    @property
    def hop(self) -> int:
        return math.prod(self.strides) * (self.istft_hop if self.kind == "istft" else 1)


class ReceptiveFieldBlock(nn.Module):
    """Residual pairs of convolutions of one kernel, dilated and plain (Kong et al. 2020)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(_same(channels, channels, kernel, dilation) for dilation in dilations)
        self.plain = nn.ModuleList(_same(channels, channels, kernel) for _ in dilations)

    def forward(self, x_BCT: Tensor, real: Real) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            inner_BCT = F.leaky_relu(real.keep(dilated(F.leaky_relu(x_BCT, _SLOPE))), _SLOPE)
            x_BCT = x_BCT + real.keep(plain(inner_BCT))
        return x_BCT


class UpBlock(nn.Module):
    """Transposed convolution of kernel 2 · stride (n steps give n · stride) and Snake, then the
    mean of blocks of several kernels."""

    def __init__(
        self, before: int, channels: int, stride: int, kernels: tuple[int, ...], dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(
            before, channels, 2 * stride, stride, padding=(stride + 1) // 2, output_padding=stride % 2
        )
        nn.init.trunc_normal_(self.conv.weight, std=(2 * before) ** -0.5)  # each output has two taps
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.snake = Snake(channels)
        self.blocks = nn.ModuleList(ReceptiveFieldBlock(channels, kernel, dilations) for kernel in kernels)

    def forward(self, x_BCT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Output and its real lengths; the padding of `x_BCT` is zero, as is that of the output."""
        if length_B is not None:
            length_B = length_B * self.stride
        x_BCT = self.conv(x_BCT)
        real = real_steps(length_B, x_BCT)
        x_BCT = real.keep(self.snake(x_BCT))
        if self.blocks:
            x_BCT = torch.stack([block(x_BCT, real) for block in self.blocks]).mean(0)
        return x_BCT, length_B


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two linear layers; scaled residual connection (Siuzdak
    2023)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, _NEXT_KERNEL, padding=_NEXT_KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.inner = init_linear(nn.Linear(channels, _NEXT_FACTOR * channels), channels)
        self.outer = init_linear(nn.Linear(_NEXT_FACTOR * channels, channels), _NEXT_FACTOR * channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x_BCT: Tensor, real: Real) -> Tensor:
        inner_BTC = self.norm(self.depthwise(x_BCT).transpose(1, 2))
        inner_BTC = self.scale * self.outer(F.gelu(self.inner(inner_BTC)))
        return x_BCT + real.keep(inner_BTC.transpose(1, 2))


class InverseSTFT(nn.Module):
    """Audio from log magnitude and phase at every frame: Hann windows of 4 · hop samples, added
    where they overlap and divided by the sum of their squares, over real frames only."""

    basis_NW: Tensor
    window_W: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop, size = hop, 4 * hop
        window_W = torch.hann_window(size, dtype=torch.float64)
        spectra_NF = torch.eye(size // 2 + 1, dtype=torch.complex128)
        waves_NW = torch.cat([torch.fft.irfft(spectra_NF, n=size), torch.fft.irfft(1j * spectra_NF, n=size)])
        self.register_buffer("basis_NW", (waves_NW * window_W).float(), persistent=False)
        self.register_buffer("window_W", window_W.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InverseSTFT:
        """Moved to a device like any module, but always float32."""
        exact = [self.basis_NW, self.window_W]
        super()._apply(fn, recurse)
        self.basis_NW, self.window_W = (
            buffer.to(moved.device) for buffer, moved in zip(exact, (self.basis_NW, self.window_W), strict=True)
        )
        return self

    @property
    def channels(self) -> int:
        return len(self.basis_NW)

    def forward(self, spectrum_BNT: Tensor, real: Real) -> Tensor:
        """[B, T · hop] of real and imaginary parts [B, N, T] of N/2 frequencies."""
        trim, size = (len(self.window_W) - self.hop) // 2, spectrum_BNT.shape[2] * self.hop
        audio_B1S = F.conv_transpose1d(real.keep(spectrum_BNT), self.basis_NW[:, None], stride=self.hop)
        ones_B1T = real.keep(torch.ones_like(spectrum_BNT[:, :1]))
        envelope_B1S = F.conv_transpose1d(ones_B1T, self.window_W.square()[None, None], stride=self.hop)
        audio_B1S = audio_B1S / envelope_B1S.clamp(min=_LEAST_ENVELOPE)
        return audio_B1S[:, 0, trim : trim + size]


class TokenDecoder(nn.Module):
    """Quantised features to audio, n · hop samples for n frames; padding changes nothing."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.first = init_convolution(nn.Conv1d(shape.code_dim, shape.channels[0], 1))
        kernels = shape.kernels if shape.kind == "hifigan" else ()
        self.up = nn.ModuleList(
            UpBlock(before, after, stride, kernels, shape.dilations)
            for before, after, stride in zip(shape.channels[:-1], shape.channels[1:], shape.strides, strict=True)
        )
        width = shape.channels[-1]
        self.istft = InverseSTFT(shape.istft_hop) if shape.kind == "istft" else None
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, 1 / shape.blocks) for _ in range(shape.blocks if self.istft is not None else 0)
        )
        self.last = init_convolution(nn.Conv1d(width, 1, 7, padding=3))
        if self.istft is not None:
            self.last = init_convolution(nn.Conv1d(width, self.istft.channels, 1))

    def forward(self, values_BTD: Tensor, length_B: Tensor | None = None) -> Tensor:
        """[B, T · hop], float32 (istft: not limited to −1…1). `length_B`: real frames of each clip
        (None: all); what comes after them is zero."""
        x_BCT = real_steps(length_B, values_BTD.transpose(1, 2)).keep(self.first(values_BTD.transpose(1, 2)))
        for block in self.up:
            x_BCT, length_B = block(x_BCT, length_B)
        real = real_steps(length_B, x_BCT)
        for block in self.blocks:
            x_BCT = block(x_BCT, real)
        with torch.autocast(x_BCT.device.type, enabled=False):  # bfloat16 would add noise at −40 dB
            return self._audio(x_BCT, length_B, real)

    def _audio(self, x_BCT: Tensor, length_B: Tensor | None, real: Real) -> Tensor:
        """The last layers, in float32."""
        last = self.last
        assert last.bias is not None
        x_BCT = F.conv1d(x_BCT.float(), last.weight.float(), last.bias.float(), padding=last.padding)  # type: ignore[arg-type]
        if self.istft is None:
            return real.keep(torch.tanh(x_BCT))[:, 0]
        log_BFT, phase_BFT = x_BCT.chunk(2, dim=1)
        magnitude_BFT = torch.exp(log_BFT.clamp(max=_LARGEST_LOG))
        parts_BNT = torch.cat([magnitude_BFT * torch.cos(phase_BFT), magnitude_BFT * torch.sin(phase_BFT)], 1)
        samples_B = None if length_B is None else length_B * self.shape.istft_hop
        audio_BS = self.istft(parts_BNT, real)
        return real_steps(samples_B, audio_BS[:, None]).keep(audio_BS[:, None])[:, 0]


def _same(before: int, channels: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    """A convolution that keeps the length."""
    return init_convolution(nn.Conv1d(before, channels, kernel, dilation=dilation, padding=dilation * (kernel // 2)))
