"""The speech encoder f_φ: HuBERT's architecture, with the same tensor names.
[Architecture Details]

B batch, S samples, T frames, C channels of the frontend, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sjepa.core.frames import SPEECH, FrameGeometry
from sjepa.core.tensors import given_lengths
from sjepa.features.mel_frontend import MelFrontend, MelStatistics
from sjepa.modules.dropout import Dropout
from sjepa.modules.gradient_scale import scale_gradient
from sjepa.modules.transformer import TransformerLayer, TransformerShape, init_linear
from sjepa.s_jepa.modules.frontend import Frontend
from sjepa.s_jepa.modules.positions import ConvPositions


@dataclass(frozen=True)
class EncoderShape:
    """The encoder's architecture parameters. The defaults are `base`."""

    conv_channels: int = 512
    num_layers: int = 6
    transformer: TransformerShape = field(default_factory=lambda: TransformerShape(768, 12, 3072))
    position_kernel: int = 128
    position_groups: int = 16
    frontend_gradient_scale: float = 0.1
    frontend: Literal["waveform", "logmel"] = "waveform"
    mel_statistics: MelStatistics = "both"
    geometry: FrameGeometry = SPEECH

    @property
    def width(self) -> int:
        return self.transformer.width


class EncoderOutput(NamedTuple):
    """`features_BTD`: output of the last computed layer; `real_BT`: False at padding; `layers`: the
    outputs of all computed layers, in order; `frames_BTD`: projected frontend features, before
    masking and positions."""

    features_BTD: Tensor
    real_BT: Tensor
    layers: tuple[Tensor, ...]
    frames_BTD: Tensor


class FeatureProjection(nn.Module):
    """LayerNorm over the channels, Linear to the width, dropout. Without `normalised` no LayerNorm,
    which would remove the level of log-mel frames."""

    def __init__(self, channels: int, width: int, dropout: float, *, normalised: bool) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels) if normalised else nn.Identity()
        self.projection = init_linear(nn.Linear(channels, width), width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC.to(
            self.projection.weight.dtype
        )  # the frontend may output another dtype after model.half() or .double()
        return self.dropout(self.projection(self.layer_norm(x_BTC)))  # type: ignore[no-any-return]


class TransformerStack(nn.Module):
    """Convolutional positions, LayerNorm, dropout, post-norm layers."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.pos_conv_embed = ConvPositions(shape.width, kernel=shape.position_kernel, groups=shape.position_groups)
        self.layer_norm = nn.LayerNorm(shape.width)
        self.dropout = Dropout(shape.transformer.dropout)
        self.layers = nn.ModuleList(TransformerLayer(shape.transformer) for _ in range(shape.num_layers))
        self.recomputes = False  # gradient checkpointing in training

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None, up_to: int, dropped: Collection[int]) -> list[Tensor]:
        """Outputs of layers 0 … up_to. A dropped layer is the identity; its parameters stay in the
        graph, with zero gradients."""
        x_BTD = self.dropout(self.layer_norm(x_BTD + self.pos_conv_embed(x_BTD)))
        outputs: list[Tensor] = []
        recomputes = self.recomputes and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers[: up_to + 1]):
            run = partial(checkpoint, layer, use_reentrant=False) if recomputes else layer
            x_BTD = run(x_BTD, real_BT, passed_by=index in dropped)
            outputs.append(x_BTD)
        return outputs


def _frontend(shape: EncoderShape) -> Any:
    if shape.frontend == "logmel":
        return MelFrontend(statistics=shape.mel_statistics, geometry=shape.geometry)
    return Frontend(shape.conv_channels, geometry=shape.geometry)


class Encoder(nn.Module):
    """Raw audio to frame features."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape, self.geometry = shape, shape.geometry
        self.feature_extractor = _frontend(shape)
        self.feature_projection = FeatureProjection(
            self.feature_extractor.num_channels,
            shape.width,
            shape.transformer.dropout,
            normalised=shape.frontend == "waveform",
        )
        self.encoder = TransformerStack(shape)

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    def recompute_activations(self, wanted: bool) -> None:
        """Switches gradient checkpointing of the transformer layers on or off: same gradients
        (dropout included), less memory, about a third more time."""
        self.encoder.recomputes = wanted

    def freeze(self, num_layers: int) -> None:
        """Freezes the lowest `num_layers` transformer layers, the frontend, projection and
        positions."""
        stack = self.encoder
        lower = [self.feature_extractor, self.feature_projection, stack.pos_conv_embed, stack.layer_norm]
        for module in [*lower, *stack.layers[:num_layers]]:
            module.requires_grad_(False)

    def forward(
        self,
        waveform_BS: Tensor,
        num_samples_B: Tensor | None = None,
        *,
        mask_BT: Tensor | None = None,
        up_to: int | None = None,
        dropped: Collection[int] = (),
        statistics: Any = None,
    ) -> EncoderOutput:
        """Features of every layer up to index `up_to` (default: the last).

        `waveform_BS` float32 in −1…1; `num_samples_B` int64, length of each clip without padding
        (None: no clip is padded, and attention needs no mask). Frames where `mask_BT` is True are
        zeroed before the positions, so they do not leak into the features. `dropped` layers are
        skipped. `statistics` replaces the frontend's per-clip normalisation statistics. Padding
        never changes a clip's features.
        """
        is_padded, num_samples_B = num_samples_B is not None, given_lengths(num_samples_B, waveform_BS)
        if is_padded:
            beyond_BS = torch.arange(waveform_BS.shape[1], device=waveform_BS.device) >= num_samples_B[:, None]
            waveform_BS = waveform_BS.masked_fill(beyond_BS, 0.0)  # clears NaN too
        x_BTC = self.feature_extractor(waveform_BS, num_samples_B, statistics)
        x_BTC = scale_gradient(x_BTC, self.shape.frontend_gradient_scale)
        frames_BTD = self.feature_projection(x_BTC)
        step_T = torch.arange(frames_BTD.shape[1], device=frames_BTD.device)
        real_BT = step_T < self.geometry.frames(num_samples_B)[:, None]
        seen_BT = real_BT if mask_BT is None else real_BT & ~mask_BT
        x_BTD = frames_BTD * seen_BT[..., None]
        last = self.num_layers - 1 if up_to is None else up_to
        outputs = self.encoder(x_BTD, real_BT if is_padded else None, last, dropped)
        return EncoderOutput(outputs[-1], real_BT, tuple(outputs), frames_BTD)
