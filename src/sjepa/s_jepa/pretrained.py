"""A trained encoder for downstream use. B batch, S samples, T frames, D width, L layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry
from sjepa.core.model_hub import fetched, is_hub
from sjepa.core.tensors import given_lengths
from sjepa.s_jepa.hubert import read_hubert
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.weights import load_weights

Layer = int | Literal["all"]

_LEAST_VARIANCE = 1e-7  # the epsilon of transformers' feature extractor


class PretrainedEncoder(nn.Module):
    """Waveforms to features of the chosen layer. In evaluation mode after construction; gradients
    are enabled for fine-tuning."""

    def __init__(self, encoder: Encoder, *, layer: Layer = -1, normalises: bool = False) -> None:
        """`layer`: 0 is the first transformer layer, negative counts from the top, "all" returns
        all. `normalises`: each clip is first normalised to zero mean and unit variance.

        Raises ValueError if the layer does not exist.
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
        """Sample rate, hop and receptive field of the frames."""
        return self.encoder.geometry

    @property
    def sample_rate(self) -> int:
        return self.geometry.sample_rate

    def forward(
        self, waveform_BS: Tensor, num_samples_B: Tensor | None = None, *, layer: Layer | None = None
    ) -> Tensor:
        """Features [B, T, D], or [L, B, T, D] with layer "all"; `layer` None: the one set at
        construction.

        `waveform_BS`: float32 at `sample_rate` in −1…1, each clip followed by arbitrary padding.
        `num_samples_B`: length of each clip without padding (default: all). The first
        `feature_lengths` frames of a row are valid and do not depend on the batch; ignore the
        others. Raises ValueError if a clip is shorter than one frame or the layer does not exist.
        """
        length_B, fewest = given_lengths(num_samples_B, waveform_BS), self.geometry.receptive_field_samples
        if len(length_B) and int(length_B.min()) < fewest:
            raise ValueError(f"a clip is shorter than the {fewest} samples of one frame")
        if self.normalises:
            waveform_BS = normalised(waveform_BS, length_B)
        chosen = self.layer if layer is None else layer
        if chosen == "all":
            return torch.stack(self.encoder(waveform_BS, num_samples_B).layers)
        return self.encoder(waveform_BS, num_samples_B, up_to=self._index(chosen)).features_BTD  # type: ignore[no-any-return]

    def feature_lengths(self, num_samples_B: Tensor) -> Tensor:
        """Number of valid frames for clips of `num_samples_B` samples."""
        return self.geometry.frames(num_samples_B)

    def _index(self, layer: int) -> int:
        if not -self.num_layers <= layer < self.num_layers:
            raise ValueError(
                f"layer {layer}: the encoder has layers 0 to {self.num_layers - 1} (or -1 to -{self.num_layers})"
            )
        return layer % self.num_layers


def load_encoder(path: str | Path, *, layer: Layer = -1) -> PretrainedEncoder:
    """The encoder of a weights file (best.pt), of a Hugging Face HuBERT folder, or of a model on
    its Hub (hf://OWNER/NAME, which is downloaded once), on the CPU.

    Raises UserError if it is missing or damaged, ValueError if the layer does not exist.
    """
    path = fetched(str(path), "load_encoder") if is_hub(path) else Path(path)
    if path.is_dir():
        encoder, normalises = read_hubert(path)
        return PretrainedEncoder(encoder, layer=layer, normalises=normalises)
    return PretrainedEncoder(load_weights(path).model.encoder, layer=layer)


def normalised(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
    """Each clip normalised to zero mean and unit variance, with zero padding."""
    real_BS = torch.arange(waveform_BS.shape[1], device=waveform_BS.device) < num_samples_B[:, None]
    count_B1 = num_samples_B[:, None].clamp(min=1)
    waveform_BS = waveform_BS.masked_fill(~real_BS, 0)
    centred_BS = (waveform_BS - waveform_BS.sum(1, keepdim=True) / count_B1).masked_fill(~real_BS, 0)
    variance_B1 = centred_BS.square().sum(1, keepdim=True) / count_B1
    return centred_BS / (variance_B1 + _LEAST_VARIANCE).sqrt()
