"""The network of stage 1: encoder and predictor. B batch, S samples, T frames, D width, N masked
frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.sharding import in_one_piece
from sjepa.modules.spectrum import SpectrumHead
from sjepa.tokenizer.modules.conformer import ConformerShape
from sjepa.tokenizer.modules.encoder import TokenEncoder, TokenEncoderShape
from sjepa.tokenizer.modules.predictor import TokenPredictor

MaskedAt = Literal["input", "output"]


@dataclass(frozen=True)
class TokenJEPAShape:
    """Sizes, as plain values that are saved with the weights. `spectrum`: with the heads of the
    spectral loss; `context`: frames around a frame whose log-mel bands its features must give."""

    encoder: TokenEncoderShape
    predictor: ConformerShape
    spectrum: bool = False
    context: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TokenJEPAShape:
        """Raises TypeError or KeyError on values that `to_dict` did not write."""
        return TokenJEPAShape(
            TokenEncoderShape.from_dict(values["encoder"]),
            ConformerShape(**values["predictor"]),
            values.get("spectrum", False),
            tuple(values.get("context", ())),
        )


class TokenPredictions(NamedTuple):
    """At the masked frames [N, D]; `spectrum_error`: of both heads, summed over visible frames, if
    asked for."""

    predicted_ND: Tensor
    spectrum_error: Tensor | None = None


class TokenJEPA(nn.Module):
    """Online encoder and predictor."""

    def __init__(self, shape: TokenJEPAShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = TokenEncoder(shape.encoder)
        self.predictor = TokenPredictor(shape.encoder.width, shape.predictor)
        inner, geometry = shape.encoder.conformer.width, shape.encoder.geometry
        self.spectrum = SpectrumHead(inner, geometry) if shape.spectrum else None
        self.context = SpectrumHead(shape.encoder.width, geometry, shape.context) if shape.context else None

    @property
    def _heads(self) -> list[SpectrumHead]:
        return [head for head in (self.spectrum, self.context) if head is not None]

    def shards(self) -> list[nn.Module]:
        """Modules that are gathered one at a time when the weights are sharded."""
        return [*self.encoder.down, *self.encoder.conformer, self.encoder, self.predictor]

    def in_one_piece(self) -> TokenJEPA:
        """This network, or an unsharded copy if its weights are sharded. Collective."""
        return in_one_piece(self, lambda: TokenJEPA(self.shape))

    def forward(
        self,
        waveform_BS: Tensor,
        num_samples_B: Tensor | None,
        mask_BT: Tensor,
        masked_N: Tensor,
        at: MaskedAt,
        *,
        spectral: bool = False,
    ) -> TokenPredictions:
        """Predictions [N, D] at the flat frame indices b·T + t. Masked frames are hidden from the
        encoder `at` its input; with "output" only from the predictor. With `spectral` also the
        error of the spectrum heads: from the convolutions, and from the features of visible frames
        to all frames around."""
        hidden_BT = mask_BT if at == "input" else None
        features = self.encoder(waveform_BS, num_samples_B, mask_BT=hidden_BT)
        length_B = None if num_samples_B is None else self.encoder.geometry.frames(num_samples_B)
        predicted_BTD = self.predictor(features.features_BTD, mask_BT, length_B)
        predicted_ND = predicted_BTD.flatten(0, 1)[masked_N]
        if not spectral or self.spectrum is None:
            return TokenPredictions(predicted_ND + sum(head.unused() for head in self._heads))
        hop = self.encoder.geometry.hop_samples
        whole_BS = F.pad(waveform_BS, (0, -waveform_BS.shape[1] % hop))
        visible_BT = features.real_BT & ~mask_BT
        error = self.spectrum(features.frames_BTD, whole_BS, num_samples_B, visible_BT)
        if self.context is not None:
            error = error + self.context(features.features_BTD, whole_BS, num_samples_B, visible_BT)
        return TokenPredictions(predicted_ND, error)
