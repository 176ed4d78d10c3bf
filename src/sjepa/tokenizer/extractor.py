"""The tokenizer's encoder as a feature extractor for probes. B batch, T frames, L layers, D
features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.frames import padded_geometry
from sjepa.core.random import key
from sjepa.core.torch_files import kind_of
from sjepa.dataset.audio import resample
from sjepa.evaluation.features import Extractor
from sjepa.tokenizer.codec.weights import KIND as CODEC_KIND
from sjepa.tokenizer.codec.weights import load_codec
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.weights import KIND, load_weights


def is_token_encoder(path: Path) -> bool:
    """Whether a file holds weights of the tokenizer."""
    return path.is_file() and kind_of(path) in (KIND, CODEC_KIND)


def is_codec(path: Path) -> bool:
    """Whether a file holds weights of its stage 2."""
    return path.is_file() and kind_of(path) == CODEC_KIND


def load_token_encoder(path: Path) -> TokenEncoder:
    """The trained encoder of a weights file of either stage. Raises UserError."""
    return load_codec(path).codec.encoder if is_codec(path) else load_weights(path).network.encoder


def token_extractor(name: str, encoder: TokenEncoder, sample_rate: int, engine: Engine) -> Extractor:
    """The outputs of all Conformer blocks, for audio at `sample_rate`, which is resampled to the
    encoder's rate. Raises UserError if a frame is no whole number of samples."""
    on_device = engine.to_device(encoder.eval())

    def layers(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        return torch.stack(on_device(waveform_BS, num_samples_B).layers)

    return _extractor(name, encoder, encoder.num_layers, layers, sample_rate, engine)


def quantised_extractor(name: str, path: Path, sample_rate: int, engine: Engine) -> Extractor:
    """The values that the tokens of a codec stand for; the rest as for `token_extractor`."""
    codec = engine.to_device(load_codec(path).codec.eval())

    def values(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        return codec.fsq.values(codec.codes(waveform_BS, num_samples_B))[None]

    return _extractor(name, codec.encoder, 1, values, sample_rate, engine)


def _extractor(
    name: str,
    encoder: TokenEncoder,
    num_layers: int,
    features: Callable[[Tensor, Tensor], Tensor],
    sample_rate: int,
    engine: Engine,
) -> Extractor:
    own_rate = encoder.geometry.sample_rate
    hop, rest = divmod(encoder.geometry.hop_samples * sample_rate, own_rate)
    if rest:
        raise UserError(f"{name}: a frame of {encoder.geometry.hop_samples} samples at {own_rate} Hz is no whole number of "
                        f"samples at {sample_rate} Hz")  # fmt: skip

    def compute(waveform_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None) -> Tensor:
        if own_rate != sample_rate:
            waveform_BS, num_samples_B = _resampled(waveform_BS, num_samples_B, sample_rate, own_rate)
        with engine.autocast():
            return features(waveform_BS, num_samples_B)

    return Extractor(name, num_layers, padded_geometry(sample_rate, hop), engine.device, compute)


def _resampled(waveform_BS: Tensor, num_samples_B: Tensor, rate: int, target_rate: int) -> tuple[Tensor, Tensor]:
    """Clips and their lengths at `target_rate`."""
    clips = [
        torch.from_numpy(resample(waveform_S[:samples].cpu().numpy(), rate, target_rate))
        for waveform_S, samples in zip(waveform_BS, num_samples_B.tolist(), strict=True)
    ]
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(clips, batch_first=True).to(waveform_BS), lengths.to(num_samples_B)


def untrained_token_extractor(trained: TokenEncoder, seed: int, sample_rate: int, engine: Engine) -> Extractor:
    """A randomly initialised encoder of the same shape."""
    torch.manual_seed(key(seed, "untrained"))
    return token_extractor("untrained", TokenEncoder(trained.shape), sample_rate, engine)
