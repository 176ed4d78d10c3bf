"""The tokenizer's encoder: strided convolutions with residual blocks and Gaussian attention, then
Conformer blocks. B batch, S samples, T frames, D width of the features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry, padded_geometry
from sjepa.core.tensors import given_lengths
from sjepa.modules.transformer import init_linear
from sjepa.tokenizer.modules.conformer import ConformerBlock, ConformerShape
from sjepa.tokenizer.modules.gaussian_attention import GaussianAttention
from sjepa.tokenizer.modules.lengths import Real, real_steps
from sjepa.tokenizer.modules.snake import Snake

_SLOPE = 0.1  # of leaky ReLU
_UNITS = 3  # pairs of convolutions in a residual block
_KERNEL = 3
_LEAST_POWER = 1e-6  # of silence: −60 dB


@dataclass(frozen=True)
class TokenEncoderShape:
    """Sizes of the encoder; `width` is that of the features. `clip_seconds` limits the dilations:
    no tap reaches further than half a clip of that length."""

    sample_rate: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    residual_blocks: int
    conformer: ConformerShape
    conformer_layers: int
    width: int
    first_kernel: int = 7
    gaussians: int = 4
    clip_seconds: float = 15.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenEncoderShape:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError on other values."""
        lists = {name: tuple(values[name]) for name in ("channels", "strides")}
        return cls(**{**values, **lists, "conformer": ConformerShape(**values["conformer"])})

    @property
    def geometry(self) -> FrameGeometry:
        return padded_geometry(self.sample_rate, math.prod(self.strides))


class TokenFeatures(NamedTuple):
    """`features_BTD`; `real_BT`: False at padding; `layers`: outputs of the Conformer blocks;
    `frames_BTD`: their input, from the convolutions."""

    features_BTD: Tensor
    real_BT: Tensor
    layers: tuple[Tensor, ...]
    frames_BTD: Tensor


def init_convolution(conv: nn.Conv1d) -> nn.Conv1d:
    """Truncated normal weights of variance 1 / fan-in (0.02 at 512 channels and kernel 5, the
    reference's value for every layer), zero bias."""
    fan_in = conv.weight[0].numel()
    nn.init.trunc_normal_(conv.weight, std=fan_in**-0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    """Pairs of kernel-3 convolutions, dilated and plain, each pair with a skip connection."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            init_convolution(nn.Conv1d(channels, channels, _KERNEL, dilation=rate, padding=rate)) for rate in dilations
        )
        self.plain = nn.ModuleList(
            init_convolution(nn.Conv1d(channels, channels, _KERNEL, padding=1)) for _ in dilations
        )

    def forward(self, x_BCT: Tensor, real: Real) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            inner_BCT = F.leaky_relu(real.keep(dilated(F.leaky_relu(x_BCT, _SLOPE))), _SLOPE)
            x_BCT = x_BCT + real.keep(plain(inner_BCT))
        return x_BCT


class DownBlock(nn.Module):
    """Strided convolution of kernel 2 · stride (n · stride steps give n), Snake, residual blocks,
    Gaussian attention (unless there are no Gaussians)."""

    def __init__(self, shape: TokenEncoderShape, level: int) -> None:
        super().__init__()
        before, channels, stride = shape.channels[level], shape.channels[level + 1], shape.strides[level]
        self.stride = stride
        self.conv = init_convolution(nn.Conv1d(before, channels, 2 * stride, stride))
        self.snake = Snake(channels)
        steps = shape.clip_seconds * shape.sample_rate / math.prod(shape.strides[: level + 1])
        furthest = max(1, int(steps / 2))
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, tuple(min(3**unit * (index + 1), furthest) for unit in range(_UNITS)))
            for index in range(shape.residual_blocks)
        )
        self.attention = GaussianAttention(channels, shape.gaussians) if shape.gaussians else None

    def forward(self, x_BCT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Output and its real lengths; the padding of `x_BCT` is zero, as is that of the output."""
        if length_B is not None:
            length_B = -(-length_B // self.stride)
        missing, left = -x_BCT.shape[2] % self.stride, self.stride // 2
        x_BCT = self.conv(F.pad(x_BCT, (left, missing + self.stride - left)))
        real = real_steps(length_B, x_BCT)
        x_BCT = real.keep(self.snake(x_BCT))
        for block in self.blocks:
            x_BCT = block(x_BCT, real)
        if self.attention is not None:
            x_BCT = self.attention(x_BCT, real)
        return x_BCT, length_B


class TokenEncoder(nn.Module):
    """Raw audio to frame features; a clip of n · hop samples has n frames, and a remainder one
    more."""

    def __init__(self, shape: TokenEncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.first = init_convolution(
            nn.Conv1d(1, shape.channels[0], shape.first_kernel, padding=shape.first_kernel // 2)
        )
        self.down = nn.ModuleList(DownBlock(shape, level) for level in range(len(shape.strides)))
        inner = shape.conformer.width
        self.projection = init_linear(nn.Linear(shape.channels[-1], inner), shape.channels[-1])
        self.level = init_linear(nn.Linear(1, inner), inner)
        self.conformer = nn.ModuleList(ConformerBlock(shape.conformer) for _ in range(shape.conformer_layers))
        self.output: nn.Module = nn.Identity()
        if shape.width != inner:
            self.output = nn.Sequential(init_linear(nn.Linear(inner, shape.width), inner), nn.LayerNorm(shape.width))

    @property
    def geometry(self) -> FrameGeometry:
        return self.shape.geometry

    @property
    def num_layers(self) -> int:
        return len(self.conformer)

    def _level(self, x_B1S: Tensor) -> Tensor:
        """Root mean square of the samples that the encoder hears and that are not zero, [B, 1, 1].
        The convolutions get audio at level 1, where Snake is not linear; the level itself is added
        to their output."""
        heard_B11 = (x_B1S != 0).sum(2, keepdim=True).clamp(min=1)
        power_B11 = x_B1S.float().square().sum(2, keepdim=True) / heard_B11
        return (power_B11 + _LEAST_POWER).sqrt().to(x_B1S.dtype)

    def forward(
        self, waveform_BS: Tensor, num_samples_B: Tensor | None = None, *, mask_BT: Tensor | None = None
    ) -> TokenFeatures:
        """Features of every Conformer block. `waveform_BS` float32 in −1…1; `num_samples_B` int64,
        length of each clip without padding (None: no clip is padded). Samples of frames where
        `mask_BT` is True are zeroed first. Padding never changes a clip's features."""
        x_B1S = real_steps(num_samples_B, waveform_BS[:, None]).keep(waveform_BS.nan_to_num()[:, None])
        if mask_BT is not None:
            hidden_BS = mask_BT.repeat_interleave(self.geometry.hop_samples, dim=1)[:, : waveform_BS.shape[1]]
            x_B1S = x_B1S.masked_fill(hidden_BS[:, None], 0.0)
        level_B11 = self._level(x_B1S)
        x_B1S = x_B1S / level_B11
        x_BCT, length_B = real_steps(num_samples_B, x_B1S).keep(self.first(x_B1S)), num_samples_B
        for block in self.down:
            x_BCT, length_B = block(x_BCT, length_B)
        x_BTD = self.projection(x_BCT.transpose(1, 2)) + self.level(level_B11.log().to(x_BCT.dtype))
        frames_BTD, layers = x_BTD, []
        for block in self.conformer:
            x_BTD = block(x_BTD, length_B)
            layers.append(x_BTD)
        frames_B = self.geometry.frames(given_lengths(num_samples_B, waveform_BS))
        real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < frames_B[:, None]
        return TokenFeatures(self.output(x_BTD), real_BT, tuple(layers), frames_BTD)
