"""The model's hyperparameters and its named sizes. [Architecture Details]"""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from sjepa.config.values import Fraction, Rate, Section


class Hyperparameters(Section):
    """Keys of `model.overrides`. The defaults are `base`: HuBERT Base with 6 layers."""

    conv_channels: int = Field(512, ge=1, description="Channels of the convolutional frontend.")
    width: int = Field(768, ge=1, description="Width of the encoder and of the predictor.")
    num_layers: int = Field(6, ge=1, description="Transformer layers of the encoder.")
    num_heads: int = Field(12, ge=1, description="Attention heads of the encoder; divides width.")
    ffn_width: int = Field(3072, ge=1, description="Hidden width of the encoder's feed-forward blocks.")
    dropout: Rate = Field(0.1, description="Dropout on residual branches and on the input of the encoder.")
    attention_dropout: Rate = Field(0.1, description="Dropout on attention weights.")
    activation_dropout: Rate = Field(0.1, description="Dropout inside feed-forward blocks.")
    layer_drop: Rate = Field(0.05, description="Probability that an encoder layer is skipped in a training step.")
    position_kernel: int = Field(128, ge=2, description="Kernel of the convolutional positions, frames.")
    position_groups: int = Field(16, ge=1, description="Groups of the convolutional positions; divides width.")
    frontend_gradient_scale: Fraction = Field(0.1, description="Scale of the frontend's gradient.")
    predictor_heads: int = Field(8, ge=1, description="Attention heads of the predictor; divides width.")
    predictor_ffn_width: int = Field(1536, ge=1, description="Hidden width of the predictor's feed-forward block.")
    predictor_dropout: Rate = Field(0.1, description="All dropout rates of the predictor.")

    @field_validator("num_heads", "position_groups", "predictor_heads")
    @classmethod
    def _divides_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width is not None and width % value:
            raise ValueError(f"{value} does not divide the width {width}")
        return value


SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "conv_channels": 128, "width": 128, "num_layers": 2, "num_heads": 4, "ffn_width": 256,
        "predictor_heads": 4, "predictor_ffn_width": 256,
    },
    "mini": {
        "conv_channels": 256, "width": 256, "num_layers": 2, "num_heads": 4, "ffn_width": 512, "position_kernel": 32,
        "predictor_heads": 4, "predictor_ffn_width": 512,
    },
    "small": {
        "conv_channels": 512, "width": 512, "num_layers": 4, "num_heads": 8, "ffn_width": 2048,
        "predictor_heads": 8, "predictor_ffn_width": 1024,
    },
    "base": {},
    "large": {"num_layers": 12},
}  # fmt: skip


def hyperparameters(size: str, overrides: dict[str, object]) -> Hyperparameters:
    """The hyperparameters of a named size, with overrides. Raises pydantic's ValidationError."""
    return Hyperparameters.model_validate({**SIZES[size], **overrides})
