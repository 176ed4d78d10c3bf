"""ONNX export of the encoder with dynamic batch and length; padding does not change the features.
Requires the optional ONNX packages."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.features.mel_frontend import POWER_FLOOR, MelFrontend
from sjepa.modules.transformer import Attention
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.modules.frontend import Frontend, PatchStatistics

OPSET = 20  # the first with a Gelu operator
_TRACED_FRAMES = (50, 37)
_HIDDEN = -1e9  # added to the scores of padded frames


class WaveformToFeatures(nn.Module):
    """The exported module. Inputs: `waveform` [batch, samples] float32 and `lengths` [batch] int64,
    clip lengths without padding. Outputs: `features` [batch, frames, width], zero at padded frames,
    and `feature_lengths` [batch] int64; with `all_layers` also `layers` [batch, layers, frames,
    width]."""

    def __init__(self, encoder: Encoder, *, all_layers: bool) -> None:
        """`encoder` is copied, not modified."""
        super().__init__()
        self.encoder, self.all_layers = copy.deepcopy(encoder).eval(), all_layers
        positions = self.encoder.encoder.pos_conv_embed
        positions.conv = _folded(positions.conv)
        frontend = self.encoder.feature_extractor
        self.encoder.feature_extractor = (
            _MelByConvolutions(frontend) if isinstance(frontend, MelFrontend) else _ChannelsFirst(frontend)
        )
        for layer in self.encoder.encoder.layers:
            layer.attention = _PlainAttention(layer.attention)  # type: ignore[arg-type]

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output = self.encoder(waveform, lengths)
        real_BT1 = output.real_BT[..., None]
        features, counts = output.features_BTD * real_BT1, output.real_BT.sum(1)
        if not self.all_layers:
            return features, counts
        return features, counts, torch.stack(output.layers, dim=1) * real_BT1[:, None]


class _ChannelsFirst(nn.Module):
    """The frontend in channels-first layout, native to onnxruntime: avoids transposes of large
    tensors."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.frontend = frontend

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None = None) -> Tensor:
        """[B, S] to [B, T, C]."""
        frontend, geometry = self.frontend, self.frontend.geometry
        found = frontend.statistics(waveform_BS, num_samples_B) if statistics is None else statistics
        kernel_BCk, shift_BC = frontend.first_layer(found)
        patches_BkP = waveform_BS.unfold(1, geometry.kernels[0], geometry.strides[0]).transpose(1, 2)
        x_BCP = F.gelu(kernel_BCk @ patches_BkP + shift_BC[..., None])
        for layer in frontend.conv_layers[1:]:
            x_BCP = F.gelu(F.conv1d(x_BCP, layer.conv.weight, stride=layer.conv.stride))
        return x_BCP.transpose(1, 2)


class _MelByConvolutions(nn.Module):
    """The log-mel frontend as convolutions, which int8 quantisation of matrix products leaves in
    float32."""

    def __init__(self, frontend: MelFrontend) -> None:
        super().__init__()
        self.frontend = frontend

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: Any = None) -> Tensor:
        """[B, S] to [B, T, C]."""
        frontend = self.frontend
        spectrum_FW, mel_MF = frontend.spectrum_WF.T[:, None], frontend.mel_FM.T[..., None]
        waves_BFN = F.conv1d(waveform_BS[:, None], spectrum_FW, stride=frontend.hop_samples)
        real_BFN, imaginary_BFN = waves_BFN.chunk(2, dim=1)
        power_BMN = F.conv1d(real_BFN.square() + imaginary_BFN.square(), mel_MF)
        level_BNM = power_BMN.clamp(min=POWER_FLOOR).log().transpose(1, 2)
        frames = frontend.geometry.frames(waveform_BS.shape[1])
        return frontend.normalised(frontend.stacked(level_BNM, frames), num_samples_B, statistics)


class _PlainAttention(nn.Module):
    """Explicit attention with an additive mask. The exporter's version adds checks for fully masked
    rows, which do not occur here."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x_BTD: Tensor, real_BT: Tensor) -> Tensor:
        own = self.attention
        batch, frames, width = x_BTD.shape
        size = width // own.num_heads
        q, k, v = (
            projection(x_BTD).view(batch, frames, own.num_heads, size).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        hidden_BT = (~real_BT).to(x_BTD.dtype) * _HIDDEN
        scores = q @ k.transpose(2, 3) * size**-0.5 + hidden_BT[:, None, None, :]
        mixed = scores.softmax(-1) @ v
        return own.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))  # type: ignore[no-any-return]


def _folded(conv: nn.Conv1d) -> nn.Conv1d:
    """The same convolution with weight norm folded in. (Removing the parametrisation from a deep
    copy would also affect the original, as they share a class.)"""
    plain = nn.Conv1d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], padding=conv.padding[0], groups=conv.groups
    )
    with torch.no_grad():
        plain.weight.copy_(conv.weight)
        plain.bias.copy_(conv.bias)  # type: ignore[union-attr, arg-type]
    return plain


def packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime. Raises UserError if not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it)
    except ImportError as error:
        raise UserError(f"exportw needs the package {error.name}: pip install 'sjepa[onnx]'") from None
    onnxruntime.set_default_logger_severity(3)
    return onnx, onnxruntime


def write_onnx(model: WaveformToFeatures, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Writes the ONNX file atomically; `metadata` is stored in its metadata_props."""
    onnx, _ = packages()
    geometry = model.encoder.geometry
    traced = [geometry.samples(frames) for frames in _TRACED_FRAMES]
    waveform, lengths = torch.zeros(2, traced[0]), torch.tensor(traced)
    batch, samples = torch.export.Dim("batch", min=1), torch.export.Dim("samples", min=geometry.samples(1))
    outputs = ["features", "feature_lengths", *(["layers"] if model.all_layers else [])]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (waveform, lengths),
            dynamo=True,
            dynamic_shapes={"waveform": {0: batch, 1: samples}, "lengths": {0: batch}},
            input_names=["waveform", "lengths"],
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto  # type: ignore[union-attr]
    for output in proto.graph.output:
        if output.name in ("features", "layers"):  # the exporter writes an expression
            output.type.tensor_type.shape.dim[-2].dim_param = "frames"
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    with atomic_path(path) as temporary:
        onnx.save(proto, str(temporary))


def write_int8(source: Path, target: Path) -> None:
    """Writes the model with dynamic int8 quantisation of matrix products, per channel; convolutions
    stay float32."""
    packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(target) as temporary, _quiet():
        quantize_dynamic(
            str(source),
            str(temporary),
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses log messages and warnings of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
