"""The tokenizer's encoder as a feature extractor for probes. B batch, T frames, L layers, D
features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.random import key
from sjepa.core.torch_files import kind_of
from sjepa.evaluation.features import Extractor
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.weights import KIND, load_weights


def is_token_encoder(path: Path) -> bool:
    """Whether a file holds weights of the tokenizer's stage 1."""
    return path.is_file() and kind_of(path) == KIND


def load_token_encoder(path: Path, *, sample_rate: int) -> TokenEncoder:
    """The trained encoder of a weights file. Raises UserError if it hears audio at another rate."""
    encoder = load_weights(path).network.encoder
    if encoder.geometry.sample_rate != sample_rate:
        raise UserError(
            f"{path}: hears audio at {encoder.geometry.sample_rate} Hz; the probes read it at {sample_rate}"
        )
    return encoder


def token_extractor(name: str, encoder: TokenEncoder, engine: Engine) -> Extractor:
    """The outputs of all Conformer blocks."""
    on_device = engine.to_device(encoder.eval())

    def compute(waveform_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None) -> Tensor:
        with engine.autocast():
            return torch.stack(on_device(waveform_BS, num_samples_B).layers)

    return Extractor(name, encoder.num_layers, encoder.geometry, engine.device, compute)


def untrained_token_extractor(trained: TokenEncoder, seed: int, engine: Engine) -> Extractor:
    """A randomly initialised encoder of the same shape."""
    torch.manual_seed(key(seed, "untrained"))
    return token_extractor("untrained", TokenEncoder(trained.shape), engine)
