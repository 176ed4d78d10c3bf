"""Token files, and encoding and decoding of audio of any length in bounded memory. S samples, T
frames, G groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.dataset.audio import Waveform

Ints = NDArray[np.int32]
_NAMES = {"tokens", "samples", "sample_rate", "hop", "vocabulary", "model"}
_PIECE_SECONDS = 10.0  # decoded at once, without its surroundings


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


@dataclass(frozen=True)
class TokenModel:
    """A trained codec, or half of one. `identity`: changes with what tokens mean; `sample_rate` in
    Hz, `hop` in samples; `reach`: frames before and after a frame that its audio depends on;
    `encode`: audio [S] to tokens [T, G]; `decode`: tokens to audio of so many samples."""

    identity: str
    description: str
    sample_rate: int
    hop: int
    vocabulary: tuple[int, ...]
    reach: int
    encode: Callable[[Waveform], Ints]
    decode: Callable[[Ints, int], Waveform]


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
                _whole_numbers(found["tokens"]),
                int(found["samples"]),
                int(found["sample_rate"]),
                int(found["hop"]),
                tuple(int(size) for size in found["vocabulary"]),
                str(found["model"]),
            )
    except PermissionError:
        raise UserError(f"{path}: cannot be read (permission denied)") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception:  # damaged archives raise many types; messages about pickles would mislead
        raise UserError(f"{path}: not a file of tokens, or damaged") from None
    shape, frames = tokens.tokens_TG.shape, -(-tokens.samples // max(1, tokens.hop))
    if shape != (frames, len(tokens.vocabulary)):
        raise UserError(f"{path}: {shape} tokens, where {frames} frames of {len(tokens.vocabulary)} were expected")
    if min(tokens.samples, tokens.sample_rate, tokens.hop) < 1 or min(tokens.vocabulary) < 2:
        raise UserError(f"{path}: not a file of tokens, or damaged (samples, rate, hop or vocabulary)")
    for group, (column_T, size) in enumerate(zip(tokens.tokens_TG.T, tokens.vocabulary, strict=True)):
        if not (column_T.min() >= 0 and column_T.max() < size):
            raise UserError(
                f"{path}: group {group}: tokens from {column_T.min()} to {column_T.max()}, not 0 to {size - 1}"
            )
    return tokens


def _whole_numbers(tokens_TG: NDArray[Any]) -> Ints:
    if not np.issubdtype(tokens_TG.dtype, np.integer):
        raise ValueError(f"tokens of type {tokens_TG.dtype}")
    if tokens_TG.size and not np.array_equal(tokens_TG, tokens_TG.astype(np.int32)):
        raise ValueError("tokens beyond 32 bits")
    return tokens_TG.astype(np.int32)


def check_model(tokens: Tokens, model: TokenModel, path: Path) -> None:
    """Raises UserError, with what `path` needs, unless its tokens are of this model."""
    own = (model.sample_rate, model.hop, model.vocabulary)
    if (tokens.sample_rate, tokens.hop, tokens.vocabulary) != own or tokens.model != model.identity:
        needs = f"{tokens.sample_rate} Hz, {tokens.hop} samples a frame, {len(tokens.vocabulary)} tokens a frame"
        raise UserError(f"{path}: tokens of the model {tokens.model} ({needs}); these weights are {model.identity}")


def window_frames(frames: int, longest: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(start, end, first kept, end of kept) of windows of at most `longest` frames that overlap by
    at least `overlap`; each frame is kept from one window, inside an overlap from the nearer
    one."""
    if frames <= longest:
        return [(0, frames, 0, frames)] if frames else []
    starts = [*range(0, frames - longest, longest - overlap), frames - longest]
    cuts = [0, *((one + longest + two) // 2 for one, two in pairwise(starts)), frames]
    return [(start, start + longest, *kept) for start, kept in zip(starts, pairwise(cuts), strict=True)]


def encode_windows(
    model: TokenModel, read: Callable[[int, int], Waveform], samples: int, *, longest: int, overlap: int
) -> Iterator[Ints]:
    """The tokens of a recording, window by window. `read` gives its samples from a start to an end;
    `longest` and `overlap` in frames. A recording of one window is encoded as a whole."""
    hop = model.hop
    for start, end, first, last in window_frames(-(-samples // hop), longest, overlap):
        yield model.encode(read(start * hop, min(end * hop, samples)))[first - start : last - start]


def decode_pieces(model: TokenModel, tokens: Tokens, *, seconds: float = _PIECE_SECONDS) -> Iterator[Waveform]:
    """The audio of tokens, piece by piece; up to rounding the same as of all at once."""
    total, hop = len(tokens.tokens_TG), tokens.hop
    frames = max(1, round(seconds * tokens.sample_rate / hop))
    for start in range(0, total, frames):
        end = min(total, start + frames)
        before, after = max(0, start - model.reach), min(total, end + model.reach)
        audio_S = model.decode(tokens.tokens_TG[before:after], min(after * hop, tokens.samples) - before * hop)
        yield audio_S[(start - before) * hop : min(end * hop, tokens.samples) - before * hop]
