"""Named sizes of the tokenizer: keys of `model.overrides`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from sjepa.config.values import Section, WholeNumbers
from sjepa.core.frames import SPEECH


class Hyperparameters(Section):
    """The defaults are `seed`, the reference's sizes."""

    channels: WholeNumbers = Field(
        (64, 128, 256, 384, 512, 512), description="Channels after the first convolution and after each stride."
    )
    strides: WholeNumbers = Field((8, 8, 5, 5, 6), description="Strides; their product is the hop, samples.")
    residual_blocks: int = Field(8, ge=0, description="Residual blocks after each stride.")
    gaussians: int = Field(4, ge=0, description="Gaussians of the adaptive attention; 0: without it.")
    code_dim: int = Field(128, ge=1, description="Width of the features.")
    conformer_width: int | None = Field(None, ge=1, description="Width of the Conformer blocks; null: code_dim.")
    conformer_layers: int = Field(8, ge=1, description="Conformer blocks of the encoder.")
    heads: int = Field(16, ge=1, description="Attention heads; divides the widths of the blocks.")
    conformer_kernel: int = Field(31, ge=1, description="Kernel of the Conformer's convolution, frames (odd).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of the Conformer blocks.")
    predictor_width: int = Field(256, ge=1, description="Width of the predictor.")
    decoder: Literal["hifigan", "istft"] = Field(
        "hifigan", description="Stage 2: hifigan, transposed convolutions; istft, ConvNeXt blocks and an inverse STFT."
    )
    decoder_channels: WholeNumbers | None = Field(
        None, description="Channels of the decoder, first and after each stride; null: those of the encoder, reversed."
    )
    decoder_strides: WholeNumbers | None = Field(None, description="Its strides; null: those of the encoder, reversed.")
    decoder_blocks: int = Field(8, ge=1, description="istft: ConvNeXt blocks.")
    istft_hop: int = Field(1, ge=1, description="istft: hop of the inverse STFT, samples.")
    discriminator_channels: int = Field(32, ge=4, multiple_of=4, description="First channels of the discriminators.")

    @property
    def inner_width(self) -> int:
        return self.conformer_width or self.code_dim

    @property
    def hop(self) -> int:
        return math.prod(self.strides)

    @model_validator(mode="after")
    def _consistent(self) -> Hyperparameters:
        if len(self.channels) != len(self.strides) + 1:
            raise ValueError(
                f"channels: {len(self.channels)} values, but {len(self.strides)} strides need {len(self.strides) + 1}"
            )
        if min(*self.channels, *self.strides) < 1:
            raise ValueError("channels and strides must be at least 1")
        for name, width in (("conformer_width", self.inner_width), ("predictor_width", self.predictor_width)):
            if width % self.heads:
                raise ValueError(f"{name}: {width} is not a multiple of heads: {self.heads}")
        if self.conformer_kernel % 2 == 0:
            raise ValueError(f"conformer_kernel: {self.conformer_kernel} is even")
        return self


SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"channels": (8, 12, 16, 24), "strides": (8, 5, 8), "residual_blocks": 1, "code_dim": 24,
              "conformer_layers": 1, "heads": 2, "conformer_kernel": 15, "predictor_width": 24,
              "decoder": "istft", "decoder_channels": (32, 32), "decoder_strides": (2,), "decoder_blocks": 2,
              "istft_hop": 160, "discriminator_channels": 4},
    "tiny": {"channels": (32, 48, 128, 160), "strides": (8, 8, 5), "residual_blocks": 1, "code_dim": 96,
             "conformer_layers": 3, "heads": 4, "predictor_width": 96,
             "decoder": "istft", "decoder_channels": (192, 192), "decoder_strides": (2,), "decoder_blocks": 6,
             "istft_hop": 160, "discriminator_channels": 4},
    "speech": {"channels": (32, 64, 128, 256, 384), "strides": (4, 5, 8, 12), "residual_blocks": 2, "code_dim": 28,
               "conformer_width": 256, "conformer_layers": 4, "heads": 8, "predictor_width": 256},
    "seed": {},
}  # fmt: skip
RATES = {"smoke": SPEECH.sample_rate, "tiny": SPEECH.sample_rate, "speech": 24000, "seed": 24000}  # Hz


def hyperparameters(size: str, overrides: dict[str, object]) -> Hyperparameters:
    """The hyperparameters of a named size, with overrides. Raises pydantic's ValidationError."""
    return Hyperparameters.model_validate({**SIZES[size], **overrides})
