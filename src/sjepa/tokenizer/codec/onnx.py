"""Both halves of a codec as ONNX files. B batch, S samples, T frames, G groups."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import publish
from sjepa.core.onnx_files import TOLERANCE, session, write_module
from sjepa.core.random import generator
from sjepa.tokenizer.codec.model import token_model
from sjepa.tokenizer.codec.network import Codec, decoded

_TRACED_FRAMES = (50, 37)
_BATCHES, _SECONDS = (1, 2, 5), (0.0, 0.4, 3.7, 15.0)  # 0: a single frame
_OTHER_TOKENS = 1e-3  # share that rounding of features may change


class AudioToTokens(nn.Module):
    """Inputs: `waveform` [batch, samples] float32 and `lengths` [batch] int64, samples without
    padding. Outputs: `tokens` [batch, frames, groups] int32, 0 at padded frames, and
    `token_lengths` [batch] int64, frames."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BTG, frames_B = self.codec.encode(waveform, lengths), self.codec.encoder.geometry.frames(lengths)
        real_BT = torch.arange(tokens_BTG.shape[1]) < frames_B[:, None]
        return tokens_BTG * real_BT[..., None].to(torch.int32), frames_B


class TokensToAudio(nn.Module):
    """Inputs: `tokens` [batch, frames, groups] int32, each in its vocabulary, and `lengths` [batch]
    int64, samples wanted. Output: `waveform` [batch, frames · hop] float32, 0 after the length."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        fsq = self.codec.fsq
        values_BTD = fsq.values(fsq.digits(tokens))
        return decoded(self.codec.decoder, values_BTD, lengths, self.codec.encoder.geometry.hop_samples)


class Parity(NamedTuple):
    """Share of tokens that differ from the codec's, and largest difference of a sample."""

    tokens: float
    audio: float


def write_codec(codec: Codec, encoder_path: Path, decoder_path: Path, *, metadata: dict[str, str]) -> Parity:
    """Writes both files and compares them with the codec. Raises UserError, and leaves
    files of that name alone, if they differ by more than rounding explains or cannot be written."""
    codec = codec.eval()
    if not all(weight.isfinite().all() for weight in codec.state_dict().values()):
        raise UserError("weights: some are not finite numbers")
    model = token_model(codec)
    metadata = metadata | {
        "producer": f"sjepa {sjepa.__version__}",
        "identity": model.identity,
        "description": model.description,
        "sample_rate": str(model.sample_rate),
        "hop_samples": str(model.hop),
        "vocabulary": " ".join(map(str, model.vocabulary)),
        "reach_frames": str(model.reach),
    }
    wanted = (encoder_path, decoder_path)
    for path in wanted:
        if path.is_dir():
            raise UserError(f"{path}: is a folder")
    try:
        encoder_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=encoder_path.parent, prefix=".export-") as folder:
            made = [Path(folder) / path.name for path in wanted]
            _write(codec, made[0], made[1], metadata)
            found = compare(codec, made[0], made[1])
            if not (found.tokens <= _OTHER_TOKENS and found.audio <= TOLERANCE):
                raise UserError(
                    f"{encoder_path} and {decoder_path}: not written, since {found.tokens:.1%} of the tokens differ and "
                    f"audio by {found.audio:.1e}; another version of torch, onnx or onnxruntime may do better"
                )
            for new, path in zip(made, wanted, strict=True):
                publish(new, path)
    except OSError as error:
        raise UserError(f"{encoder_path.parent}: cannot be written ({error.strerror})") from error
    return found


def _write(codec: Codec, encoder_path: Path, decoder_path: Path, metadata: dict[str, str]) -> None:
    hop, groups = codec.encoder.geometry.hop_samples, len(codec.fsq.groups)
    traced = torch.tensor(_TRACED_FRAMES) * hop
    batch, samples, frames = (torch.export.Dim(name, min=1) for name in ("batch", "samples", "frames"))
    write_module(
        AudioToTokens(codec),
        {"waveform": torch.zeros(2, int(traced[0])), "lengths": traced},
        encoder_path,
        dynamic={"waveform": {0: batch, 1: samples}, "lengths": {0: batch}},
        outputs={"tokens": {1: "frames"}, "token_lengths": {}},
        metadata=metadata,
    )
    write_module(
        TokensToAudio(codec),
        {"tokens": torch.zeros(2, _TRACED_FRAMES[0], groups, dtype=torch.int32), "lengths": traced},
        decoder_path,
        dynamic={"tokens": {0: batch, 1: frames}, "lengths": {0: batch}},
        outputs={"waveform": {1: "samples"}},
        metadata=metadata,
    )


@torch.no_grad()
def compare(codec: Codec, encoder_path: Path, decoder_path: Path) -> Parity:
    """The files against the codec, on noise of several lengths and batch sizes. Another number of
    frames or samples counts as infinite."""
    encoder, decoder = (session(path, threads=torch.get_num_threads()) for path in (encoder_path, decoder_path))
    other, count, largest = 0, 0, 0.0
    for waveform_BS, lengths_B in _cases(codec):
        given = {"waveform": waveform_BS.numpy(), "lengths": lengths_B.numpy()}
        tokens_BTG, frames_B = encoder.run(None, given)
        wanted_BTG, frames = AudioToTokens(codec)(waveform_BS, lengths_B)
        if tokens_BTG.shape != tuple(wanted_BTG.shape) or (frames_B != frames.numpy()).any():
            return Parity(float("inf"), float("inf"))
        other, count = other + int((tokens_BTG != wanted_BTG.numpy()).sum()), count + tokens_BTG.size
        (audio_BS,) = decoder.run(None, {"tokens": wanted_BTG.numpy(), "lengths": lengths_B.numpy()})
        wanted_BS = TokensToAudio(codec)(wanted_BTG, lengths_B).numpy()
        if audio_BS.shape != wanted_BS.shape:
            return Parity(float("inf"), float("inf"))
        largest = float(np.maximum(largest, np.abs(audio_BS - wanted_BS).max()))  # keeps NaN
    return Parity(other / count, largest)


def _cases(codec: Codec) -> Iterator[tuple[Tensor, Tensor]]:
    """Waveforms [B, S] and lengths [B]; what comes after a clip is loud."""
    geometry = codec.encoder.geometry
    for batch in _BATCHES:
        for seconds in _SECONDS:
            samples = max(geometry.hop_samples, round(seconds * geometry.sample_rate))
            rng = generator("parity", batch, samples)
            lengths = np.maximum(1, samples - np.arange(batch) * samples // 7)
            waveform = 0.1 * rng.standard_normal((batch, samples))
            waveform[np.arange(samples) >= lengths[:, None]] *= 10
            yield torch.from_numpy(waveform.astype(np.float32)), torch.from_numpy(lengths)
