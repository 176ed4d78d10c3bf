"""Token files, and encoding and decoding of audio of any length in bounded memory. S samples, T
frames, G groups."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.dataset.audio import Waveform
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.modules.decoder import DecoderShape

Ints = NDArray[np.int32]
_NAMES = {"tokens", "samples", "sample_rate", "hop", "vocabulary", "model"}
_PIECE_FRAMES = 512  # decoded at once, without their surroundings


@dataclass(frozen=True)
class Tokens:
    """The tokens of a recording [T, G], the length of the audio, what a decoder needs (rate, hop
    and vocabulary of every group), and the `identity` of the codec."""

    tokens_TG: Ints
    samples: int
    sample_rate: int
    hop: int
    vocabulary: tuple[int, ...]
    model: str

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def identity(codec: Codec) -> str:
    """16 hexadecimal digits that change with the encoder's weights and the quantiser."""
    digest = hashlib.blake2b(repr((codec.fsq.levels, codec.fsq.group)).encode(), digest_size=8)
    for name, value in sorted(codec.encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Writes an .npz file atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            tokens=tokens.tokens_TG,
            samples=np.int64(tokens.samples),
            sample_rate=np.int64(tokens.sample_rate),
            hop=np.int64(tokens.hop),
            vocabulary=np.array(tokens.vocabulary, np.int64),
            model=np.str_(tokens.model),
        )


def read_tokens(path: Path) -> Tokens:
    """Raises UserError if the file is missing, damaged, or holds no tokens."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if not set(found.files) >= _NAMES:
                raise UserError(
                    f"{path}: not a file of tokens (without {', '.join(sorted(_NAMES - set(found.files)))})"
                )
            tokens = Tokens(
                found["tokens"],
                int(found["samples"]),
                int(found["sample_rate"]),
                int(found["hop"]),
                tuple(int(size) for size in found["vocabulary"]),
                str(found["model"]),
            )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):  # messages about pickles would mislead
        raise UserError(f"{path}: not a file of tokens, or damaged") from None
    shape, frames = tokens.tokens_TG.shape, -(-tokens.samples // max(1, tokens.hop))
    if shape != (frames, len(tokens.vocabulary)):
        raise UserError(f"{path}: {shape} tokens, where {frames} frames of {len(tokens.vocabulary)} were expected")
    return tokens


def check_codec(tokens: Tokens, codec: Codec, path: Path) -> None:
    """Raises UserError, with what `path` needs, unless its tokens are of this codec."""
    geometry = codec.encoder.geometry
    own = (geometry.sample_rate, geometry.hop_samples, codec.fsq.vocabulary)
    if (tokens.sample_rate, tokens.hop, tokens.vocabulary) != own or tokens.model != identity(codec):
        needs = f"{tokens.sample_rate} Hz, {tokens.hop} samples a frame, {len(tokens.vocabulary)} tokens a frame"
        raise UserError(f"{path}: tokens of the model {tokens.model} ({needs}); these weights are {identity(codec)}")


def window_frames(frames: int, longest: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(start, end, first kept, end of kept) of windows of at most `longest` frames that overlap by
    at least `overlap`; each frame is kept from one window, inside an overlap from the nearer
    one."""
    if frames <= longest:
        return [(0, frames, 0, frames)] if frames else []
    starts = [*range(0, frames - longest, longest - overlap), frames - longest]
    cuts = [0, *((one + longest + two) // 2 for one, two in pairwise(starts)), frames]
    return [(start, start + longest, *kept) for start, kept in zip(starts, pairwise(cuts), strict=True)]


@torch.no_grad()
def encode_windows(
    codec: Codec, read: Callable[[int, int], Waveform], samples: int, *, longest: int, overlap: int
) -> Iterator[Ints]:
    """The tokens of a recording, window by window. `read` gives its samples from a start to an end;
    `longest` and `overlap` in frames. A recording of one window is encoded as a whole."""
    device = next(codec.parameters()).device
    hop = codec.encoder.geometry.hop_samples
    for start, end, first, last in window_frames(-(-samples // hop), longest, overlap):
        waveform_S = torch.from_numpy(read(start * hop, min(end * hop, samples))).to(device)
        yield codec.encode(waveform_S[None])[0, first - start : last - start].cpu().numpy()


@torch.no_grad()
def decode_pieces(codec: Codec, tokens: Tokens, *, frames: int = _PIECE_FRAMES) -> Iterator[Waveform]:
    """The audio of tokens, piece by piece; the same as of all at once. Raises ValueError if a token
    is outside its vocabulary."""
    device, margin = next(codec.parameters()).device, reach(codec.decoder.shape)
    total, hop = len(tokens.tokens_TG), tokens.hop
    for start in range(0, total, frames):
        end = min(total, start + frames)
        before, after = max(0, start - margin), min(total, end + margin)
        piece_TG = torch.from_numpy(tokens.tokens_TG[before:after]).to(device)
        audio_S = codec.decode(piece_TG[None])[0].float().cpu().numpy()
        yield audio_S[(start - before) * hop : min(end * hop, tokens.samples) - before * hop]


def reach(shape: DecoderShape) -> int:
    """Frames before and after a frame that its audio depends on, rounded up."""
    steps, total = 1, 0.0  # steps of a frame
    block = max(sum((kernel // 2) * (dilation + 1) for dilation in shape.dilations) for kernel in shape.kernels)
    for stride in shape.strides:
        total += 1 / steps
        steps *= stride
        total += block / steps if shape.kind == "hifigan" else 0.0
    total += (shape.blocks * 3 + 4) / steps if shape.kind == "istft" else 3 / steps
    return math.ceil(total) + 1
