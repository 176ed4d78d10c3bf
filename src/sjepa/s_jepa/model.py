"""S-JEPA: encoder, predictor and cluster head. B batch, S samples, T frames, D width, K components,
N chosen frames."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.sharding import in_one_piece
from sjepa.modules.spectrum import SpectrumHead
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.cluster_head import ClusterHead
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from sjepa.s_jepa.modules.predictor import Positions, Predictor


@dataclass(frozen=True)
class ModelShape:
    """The model's architecture parameters, as plain values that are saved with the weights."""

    encoder: EncoderShape
    predictor: TransformerShape
    num_clusters: int
    max_frames: int
    predictor_positions: Positions = "learned"
    spectrum: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelShape:
        """Raises TypeError or KeyError on values that `to_dict` did not write."""
        encoder = dict(values["encoder"])
        encoder["transformer"] = TransformerShape(**encoder["transformer"])
        if "geometry" in encoder:  # not in files of version 0.1.0
            encoder["geometry"] = FrameGeometry(**encoder["geometry"])
        return ModelShape(
            EncoderShape(**encoder),
            TransformerShape(**values["predictor"]),
            values["num_clusters"],
            values["max_frames"],
            values.get("predictor_positions", "learned"),
            values.get("spectrum", False),
        )


class Logits(NamedTuple):
    """Logits at the requested frames: masked ones from the predictor, visible ones from the
    encoder. `spectrum_error`: summed over all real frames, if requested."""

    masked_NK: Tensor
    visible_NK: Tensor
    spectrum_error: Tensor | None = None


class SJEPA(nn.Module):
    """The full network in training; only the encoder is used afterwards."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape.encoder)
        self.predictor = Predictor(
            shape.predictor,
            max_frames=shape.max_frames,
            positions=shape.predictor_positions,
            kernel=shape.encoder.position_kernel,
            groups=shape.encoder.position_groups,
        )
        self.head = ClusterHead(shape.encoder.width, shape.num_clusters)
        self.spectrum = SpectrumHead(shape.encoder.width, shape.encoder.geometry) if shape.spectrum else None

    def shards(self) -> list[nn.Module]:
        """Modules that are gathered one at a time when the weights are sharded."""
        return [*self.encoder.encoder.layers, self.encoder, self.predictor, self.head]

    def transformer_layers(self) -> list[nn.Module]:
        """The layers that `train.compile` compiles."""
        return [*self.encoder.encoder.layers, self.predictor.layer]

    def in_one_piece(self) -> SJEPA:
        """This network, or an unsharded copy if its weights are sharded. Collective: all ranks must
        call it."""

        def rebuild() -> SJEPA:
            empty = SJEPA(self.shape)
            empty.encoder.recompute_activations(self.encoder.encoder.recomputes)
            return empty

        return in_one_piece(self, rebuild)

    def renew_head(self, num_clusters: int) -> None:
        """Re-initialises the cluster head for `num_clusters` components, on the same device."""
        device = next(self.head.parameters()).device
        self.shape = replace(self.shape, num_clusters=num_clusters)
        self.head = ClusterHead(self.shape.encoder.width, num_clusters).to(device)

    def forward(
        self,
        waveform_BS: Tensor,
        num_samples_B: Tensor | None,
        mask_BT: Tensor,
        masked_N: Tensor,
        visible_N: Tensor,
        dropped: Collection[int] = (),
        spectral: bool = False,
    ) -> Logits:
        """Logits at the flat frame indices (b·T + t) `masked_N` and `visible_N`, in one pass of the
        head; with `spectral` also the error of the spectrum head."""
        encoded = self.encoder(waveform_BS, num_samples_B, mask_BT=mask_BT, dropped=dropped)
        real_BT = None if num_samples_B is None else encoded.real_BT
        predicted_BTD = self.predictor(encoded.features_BTD, mask_BT, real_BT)
        masked_ND = predicted_BTD.flatten(0, 1)[masked_N]
        visible_ND = encoded.features_BTD.flatten(0, 1)[visible_N]
        logits = self.head(torch.cat([masked_ND, visible_ND.to(masked_ND.dtype)]))
        masked_NK, visible_NK = logits.split([len(masked_N), len(visible_N)])
        if self.spectrum is None:
            return Logits(masked_NK, visible_NK)
        if not spectral:
            return Logits(masked_NK + self.spectrum.unused(), visible_NK)
        error = self.spectrum(encoded.frames_BTD, waveform_BS, num_samples_B, encoded.real_BT)
        return Logits(masked_NK, visible_NK, error)
