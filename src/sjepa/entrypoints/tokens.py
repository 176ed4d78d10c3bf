"""The command `runtok`: audio to tokens, tokens to audio, statistics."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from sjepa.config.load import Schema
from sjepa.config.values import Section
from sjepa.core.errors import UserError
from sjepa.dataset.audio import DecodeError, Waveform, decode_window, probe, resampled_length
from sjepa.dataset.audio_write import KINDS, audio_file
from sjepa.entrypoints.recordings import Blocks, Recording, find_recordings
from sjepa.entrypoints.signals import stop_signals
from sjepa.entrypoints.token_folder import TokenFolder
from sjepa.reporting.console import Console
from sjepa.tokenizer.codec.onnx_model import load_onnx_model
from sjepa.tokenizer.codec.tokens import (
    TokenModel,
    Tokens,
    check_model,
    decode_pieces,
    encode_windows,
    read_tokens,
    window_frames,
)
from sjepa.tokenizer.codec.usage import TokenUsage, entropy_line, usage_table


class TokenRun(Section):
    """The configuration of `runtok`."""

    weights: str | None = Field(None, description="Weights of stage 2 (best.pt), or a file of exportw (.onnx).")
    out: str | None = Field(None, description="encode: folder of the token files; decode: audio file (WAV or FLAC).")
    device: Literal["cpu", "cuda", "rocm", "mps", "auto"] = Field("auto", description="Device.")
    window_seconds: float = Field(15.0, gt=0, description="Longest piece of a recording that is encoded at once.")
    overlap_seconds: float = Field(1.0, ge=0, description="Overlap of two pieces.")


def _problems(config: TokenRun) -> list[str]:
    if config.overlap_seconds <= config.window_seconds / 2:
        return []
    return [
        f"overlap_seconds: {config.overlap_seconds:g} is more than half of window_seconds: {config.window_seconds:g}"
    ]


SCHEMA = Schema(TokenRun, problems=_problems)


def run(action: str, inputs: Sequence[Path], config: TokenRun) -> int:
    """`action`: encode, decode or stats. Returns the exit code."""
    if not inputs:
        raise UserError(f"{action}: name {'audio files or folders' if action == 'encode' else 'token files'}")
    if action == "stats":
        return _stats(inputs)
    if config.weights is None:
        raise UserError("--weights: name the weights of stage 2 (best.pt of a run of train_decoder)")
    if config.out is None:
        raise UserError(
            f"--out: name the {'folder of the tokens' if action == 'encode' else 'audio file'} to be written"
        )
    model = _model(Path(config.weights), config.device)
    if action == "encode":
        return _encode(inputs, model, config, Console())
    if len(inputs) > 1:
        raise UserError("decode: one token file at a time")
    return _decode(inputs[0], model, Path(config.out), Console())


def _model(path: Path, device: str) -> TokenModel:
    """Of weights, or of an ONNX file, which needs no torch."""
    if path.suffix == ".onnx":
        return load_onnx_model(path)
    from sjepa.core.distributed import Engine
    from sjepa.tokenizer.codec.model import token_model
    from sjepa.tokenizer.codec.weights import load_codec

    engine = Engine(device=device, precision="fp32", launch=False)
    return token_model(engine.to_device(load_codec(path).codec.eval()))


def _encode(inputs: Sequence[Path], model: TokenModel, config: TokenRun, console: Console) -> int:
    """One token file per recording, and a listing."""
    begun, seconds = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as indexes:
        recordings, dropped = find_recordings(inputs, Path(indexes))
        folder = TokenFolder(Path(str(config.out)))
        console.note(f"{model.identity}: {model.description}")
        for name, reason in dropped:
            console.warn(f"{name}: {reason}")
        failed = len(dropped)
        names = folder.names(recordings)
        with folder.listing(), stop_signals() as stop:
            for own, name in zip(recordings, names, strict=True):
                try:
                    tokens = _encoded(own, model, config, console, stop)
                except (DecodeError, OSError) as error:
                    console.warn(f"{own.path}: {error}")
                    failed += 1
                    continue
                folder.write(name, own, tokens)
                seconds += tokens.seconds
    speed = _speed(seconds, time.perf_counter() - begun)
    console.note(f"{len(recordings) + len(dropped) - failed} recordings, {speed}: {folder.path}")
    return 2 if failed else 0


def _encoded(
    recording: Recording, model: TokenModel, config: TokenRun, console: Console, stop: Callable[[], None]
) -> Tokens:
    rate, hop = model.sample_rate, model.hop
    longest, overlap = (round(value * rate / hop) for value in (config.window_seconds, config.overlap_seconds))
    with recording.open() as file:
        info = probe(file)
        first, end = round(recording.start * rate), int(resampled_length(info.samples, info.rate, rate))
        if recording.duration is not None:
            end = min(end, first + round(recording.duration * rate))
        if end <= first:
            raise DecodeError("no samples")

        def decode(start: int, stop: int) -> Waveform:
            return decode_window(file, info, start=start, length=stop - start, rate=rate)

        read = Blocks(decode, first, end)
        total = len(window_frames(-(-(end - first) // hop), max(2, longest), overlap))
        pieces = encode_windows(model, read, end - first, longest=max(2, longest), overlap=overlap)
        found = []
        for piece in console.progress(pieces, total=total, label=recording.path.name):
            stop()
            found.append(piece)
    return Tokens(np.concatenate(found), end - first, rate, hop, model.vocabulary, model.identity)


def _decode(path: Path, model: TokenModel, out: Path, console: Console) -> int:
    tokens = read_tokens(path)
    check_model(tokens, model, path)
    if out.suffix.lower() not in KINDS:
        raise UserError(f"--out: {out}: the name must end in .wav or .flac")
    begun = time.perf_counter()
    with audio_file(out, tokens.sample_rate) as file, stop_signals() as stop:
        for piece in decode_pieces(model, tokens):
            stop()
            file.write(piece)
    console.note(f"{_speed(tokens.seconds, time.perf_counter() - begun)}: {out}")
    if file.peak > 1:
        console.warn(f"samples of up to {file.peak:.2f} were clipped")
    return 0


def _stats(inputs: Sequence[Path]) -> int:
    """Prints frames, tokens, bits per second, use and entropy of every group over all files."""
    first, seconds = read_tokens(inputs[0]), 0.0
    usage = TokenUsage(first.vocabulary)
    for path in inputs:
        tokens = read_tokens(path)
        if (tokens.model, tokens.vocabulary) != (first.model, first.vocabulary):
            raise UserError(f"{path}: tokens of the model {tokens.model}, those of {inputs[0]} are of {first.model}")
        usage.add(tokens.tokens_TG)
        seconds += tokens.seconds
    if not usage.frames:
        raise UserError(f"{inputs[0]}: no frame in {len(inputs)} files")
    groups, frames = usage.groups(), usage.frames
    count = frames * len(groups)
    print(
        f"model {first.model}, {len(inputs)} files, {seconds:.1f} s: {frames:,} frames, {count:,} tokens "
        f"({count / seconds:.1f} a second)"
    )
    print(usage_table(groups))
    print(entropy_line(groups, frames / seconds))
    return 0


def _speed(seconds: float, spent: float) -> str:
    return f"{seconds:.1f} s of audio in {spent:.1f} s, {seconds / max(spent, 1e-9):.1f} times real time"
