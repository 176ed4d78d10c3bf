"""ONNX export of the encoder with dynamic batch and length; padding does not change the features.
Requires the optional ONNX packages."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.files import atomic_path
from sjepa.core.onnx_files import packages, quiet, write_module
from sjepa.features.mel_frontend import POWER_FLOOR, MelFrontend
from sjepa.modules.transformer import Attention
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.modules.frontend import Frontend, PatchStatistics

_TRACED_FRAMES = (50, 37)
_HIDDEN = -1e9  # added to the scores of padded frames


class WaveformToFeatures(nn.Module):
    """The exported module. Inputs: `waveform` [batch, samples] float32 and `lengths` [batch] int64,
    clip lengths without padding. Outputs: `features` [batch, frames, width], zero at padded frames,
    and `feature_lengths` [batch] int64; with `all_layers` also `layers` [batch, layers, frames,
    width]."""

    def __init__(self, encoder: Encoder, *, all_layers: bool, for_int8: bool = False) -> None:
        """`encoder` is copied, not modified. `for_int8`: a form that `write_int8` quantises."""
        super().__init__()
        self.encoder, self.all_layers = copy.deepcopy(encoder).eval(), all_layers
        positions = self.encoder.encoder.pos_conv_embed
        positions.conv = _Folded(positions.conv)
        frontend = self.encoder.feature_extractor
        self.encoder.feature_extractor = (
            _MelByConvolutions(frontend)
            if isinstance(frontend, MelFrontend)
            else (_MatrixProducts if for_int8 else _ChannelsFirst)(frontend)
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
    """The frontend on [B, C, 1, P]: onnxruntime has its fast kernels, without transposes of large
    tensors, for two-dimensional convolutions only."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.frontend = frontend

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None = None) -> Tensor:
        """[B, S] to [B, T, C]."""
        patches_BPk, kernel_BCk = _first_layer(self.frontend, waveform_BS, num_samples_B, statistics)
        x = F.gelu(kernel_BCk @ patches_BPk.transpose(1, 2)).unsqueeze(2)
        for layer in self.frontend.conv_layers[1:]:
            x = F.gelu(F.conv2d(x, layer.conv.weight.unsqueeze(2), stride=(1, *layer.conv.stride)))
        return x.squeeze(2).transpose(1, 2)


class _MatrixProducts(nn.Module):
    """The frontend on [B, P, C] as matrix products, for which onnxruntime has fast int8 kernels;
    its int8 convolution is no faster than float32."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.frontend = frontend
        by_tap = (layer.conv.weight.detach().permute(2, 1, 0) for layer in frontend.conv_layers[1:])
        self.weights = nn.ParameterList(weight.flatten(0, 1).contiguous() for weight in by_tap)  # [K·C, C]

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None = None) -> Tensor:
        """[B, S] to [B, T, C]."""
        patches_BPk, kernel_BCk = _first_layer(self.frontend, waveform_BS, num_samples_B, statistics)
        x_BPC = F.gelu(patches_BPk @ kernel_BCk.transpose(1, 2))
        for layer, weight in zip(self.frontend.conv_layers[1:], self.weights, strict=True):
            (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
            batch, positions, channels = x_BPC.shape
            outputs = (positions - kernel) // stride + 1
            within = x_BPC[:, : outputs * stride].reshape(batch, outputs, stride * channels)
            beyond = [x_BPC[:, tap : tap + (outputs - 1) * stride + 1 : stride] for tap in range(stride, kernel)]
            x_BPC = F.gelu(torch.cat([within, *beyond], dim=2) @ weight)
        return x_BPC


def _first_layer(
    frontend: Frontend, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None
) -> tuple[Tensor, Tensor]:
    """Patches [B, P, k + 1] and kernels [B, C, k + 1] of the first layer: the shift is a product
    with ones, since adding it would be one more pass over the largest tensor."""
    found = frontend.statistics(waveform_BS, num_samples_B) if statistics is None else statistics
    kernel_BCk, shift_BC = frontend.first_layer(found)
    patches_BPk = waveform_BS.unfold(1, frontend.geometry.kernels[0], frontend.geometry.strides[0])
    patches_BPk = torch.cat([patches_BPk, torch.ones_like(patches_BPk[..., :1])], dim=2)
    return patches_BPk, torch.cat([kernel_BCk, shift_BC[..., None]], dim=2)


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


class _Folded(nn.Module):
    """A convolution with weight norm folded in, as a two-dimensional one. (Removing the
    parametrisation from a deep copy would also affect the original, as they share a class.)"""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.kernel_size, self.padding, self.groups = conv.kernel_size, conv.padding, conv.groups
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = conv.bias

    def forward(self, x_BCT: Tensor) -> Tensor:
        weight = self.weight.unsqueeze(2)
        y = F.conv2d(x_BCT.unsqueeze(2), weight, self.bias, padding=(0, *self.padding), groups=self.groups)
        return y.squeeze(2)


def write_onnx(model: WaveformToFeatures, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Writes the ONNX file atomically; `metadata` is stored in its metadata_props."""
    geometry = model.encoder.geometry
    traced = [geometry.samples(frames) for frames in _TRACED_FRAMES]
    batch, samples = torch.export.Dim("batch", min=1), torch.export.Dim("samples", min=geometry.samples(1))
    outputs: dict[str, dict[int, str]] = {"features": {1: "frames"}, "feature_lengths": {}}
    if model.all_layers:
        outputs["layers"] = {2: "frames"}
    write_module(
        model,
        {"waveform": torch.zeros(2, traced[0]), "lengths": torch.tensor(traced)},
        path,
        dynamic={"waveform": {0: batch, 1: samples}, "lengths": {0: batch}},
        outputs=outputs,
        metadata=metadata,
    )


def write_int8(model: WaveformToFeatures, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Writes a model made `for_int8` with dynamic int8 quantisation of matrix products, weights per
    channel; convolutions stay float32."""
    onnx, _ = packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(path) as temporary, quiet():
        plain = temporary.with_name(f"{temporary.name}.float32")
        try:
            write_onnx(model, plain, metadata=metadata)
            quantize_dynamic(
                str(plain),
                str(temporary),
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        finally:
            plain.unlink(missing_ok=True)
        proto = onnx.load(str(temporary))
        quantise_before_moving(proto.graph)
        onnx.save(proto, str(temporary))


_MOVES = {"Concat", "Reshape", "Slice"}


def quantise_before_moving(graph: Any) -> None:
    """Lets DynamicQuantizeLinear precede the nodes that only rearrange its input, which is then a
    quarter of the bytes."""
    makers = {name: node for node in graph.node for name in node.output}
    first_move: dict[str, Any] = {}  # by the output of a quantisation, which has to come before it
    for quantise in graph.node:
        if quantise.op_type != "DynamicQuantizeLinear":
            continue
        source, moves = _rearranged(quantise.input[0], makers)
        if source is None:
            continue
        quantised, before = quantise.output[0], f"{quantise.output[0]}_whole"
        makers[quantise.input[0]].output[0] = quantised
        quantise.input[0], quantise.output[0] = source, before
        for node in moves:
            node.input[:] = [before if name == source else name for name in node.input]
        first_move[before] = next(node for node in graph.node if node in moves)
    moved = {node.output[0]: node for node in graph.node if node.output[0] in first_move}
    order = []
    for node in graph.node:
        order += [moved[name] for name, first in first_move.items() if first is node]
        if node.output[0] not in moved:
            order.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in order]
    del graph.node[:], graph.value_info[:]  # types of the tensors, which are inferred on loading
    graph.node.extend(copies)


def _rearranged(name: str, makers: Mapping[str, Any]) -> tuple[str | None, list[Any]]:
    """The tensor that `name` is a rearrangement of, if it is one of a single tensor, and the nodes
    between."""
    moves: list[Any] = []
    sources, names = set(), [name]
    while names:
        name = names.pop()
        node = makers.get(name)
        if node is None or node.op_type not in _MOVES:
            sources.add(name)
        elif node not in moves:
            moves.append(node)
            names += node.input if node.op_type == "Concat" else node.input[:1]
    return (sources.pop(), moves) if moves and len(sources) == 1 else (None, [])
