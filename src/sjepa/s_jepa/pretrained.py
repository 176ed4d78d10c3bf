"""A trained encoder as others use it. B batch, S samples, T frames, D width, L layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.s_jepa.hubert import read_hubert
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.weights import load_weights

Layer = int | Literal["all"]

_LEAST_VARIANCE = 1e-7  # as transformers' feature extractor adds


class PretrainedEncoder(nn.Module):
    """Recordings to features of the layer chosen. It starts in evaluation mode; gradients flow, so that it can be tuned."""

    def __init__(self, encoder: Encoder, *, layer: Layer = -1, normalises: bool = False) -> None:
        """`layer`: 0 is the first transformer layer, negative ones count from the top, "all" gives every one.
        `normalises`: each clip is brought to zero mean and unit deviation first.

        Raises ValueError if there is no such layer.
        """
        super().__init__()
        self.encoder, self.normalises = encoder, normalises
        self.layer = layer if layer == "all" else self._index(layer)
        self.eval()

    @property
    def num_layers(self) -> int:
        return self.encoder.num_layers

    @property
    def width(self) -> int:
        return self.encoder.shape.width

    @property
    def geometry(self) -> FrameGeometry:
        """How samples become frames."""
        return self.encoder.geometry

    @property
    def sample_rate(self) -> int:
        return self.geometry.sample_rate

    def forward(
        self, waveform_BS: Tensor, num_samples_B: Tensor | None = None, *, layer: Layer | None = None
    ) -> Tensor:
        """Features [B, T, D], or [L, B, T, D] with layer "all"; `layer` None: the one chosen at first.

        `waveform_BS`: float32 at `sample_rate` in −1…1, each clip's real samples followed by padding, whatever its values.
        `num_samples_B`: how many are real (default: all). A clip's features are the first `feature_lengths` of its row, and
        the same in any batch; the others mean nothing. Raises ValueError if a clip is too short for a frame, or there is no
        such layer.
        """
        if num_samples_B is None:
            num_samples_B = torch.full((len(waveform_BS),), waveform_BS.shape[1], device=waveform_BS.device)
        fewest = self.geometry.receptive_field_samples
        if len(num_samples_B) and int(num_samples_B.min()) < fewest:
            raise ValueError(f"a clip is shorter than the {fewest} samples of one frame")
        if self.normalises:
            waveform_BS = normalised(waveform_BS, num_samples_B)
        chosen = self.layer if layer is None else layer
        if chosen == "all":
            return torch.stack(self.encoder(waveform_BS, num_samples_B).layers)
        return self.encoder(waveform_BS, num_samples_B, up_to=self._index(chosen)).features_BTD  # type: ignore[no-any-return]

    def feature_lengths(self, num_samples_B: Tensor) -> Tensor:
        """How many frames clips of so many samples have."""
        return self.geometry.frames(num_samples_B)

    def _index(self, layer: int) -> int:
        if not -self.num_layers <= layer < self.num_layers:
            raise ValueError(
                f"layer {layer}: the encoder has layers 0 to {self.num_layers - 1} (or -1 to -{self.num_layers})"
            )
        return layer % self.num_layers


def load_encoder(path: str | Path, *, layer: Layer = -1) -> PretrainedEncoder:
    """The encoder of a weights file (best.pt) or of a Hugging Face HuBERT folder, on the CPU.

    Raises UserError if there is none or it is damaged, ValueError if it has no such layer.
    """
    path = Path(path)
    if path.is_dir():
        encoder, normalises = read_hubert(path)
        return PretrainedEncoder(encoder, layer=layer, normalises=normalises)
    return PretrainedEncoder(load_weights(path).model.encoder, layer=layer)


def normalised(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
    """Each clip's own samples with zero mean and unit deviation, zeros after them."""
    real_BS = torch.arange(waveform_BS.shape[1], device=waveform_BS.device) < num_samples_B[:, None]
    count_B1 = num_samples_B[:, None].clamp(min=1)
    waveform_BS = waveform_BS.masked_fill(~real_BS, 0)
    centred_BS = (waveform_BS - waveform_BS.sum(1, keepdim=True) / count_B1).masked_fill(~real_BS, 0)
    variance_B1 = centred_BS.square().sum(1, keepdim=True) / count_B1
    return centred_BS / (variance_B1 + _LEAST_VARIANCE).sqrt()
