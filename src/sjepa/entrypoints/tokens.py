"""The command `runtok`: audio to tokens, tokens to audio, statistics."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO

import numpy as np
from pydantic import Field

from sjepa.config.load import Schema
from sjepa.config.values import Section
from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.dataset.audio import DecodeError, Waveform, decode_window, probe, resampled_length
from sjepa.dataset.audio_write import KINDS, audio_file
from sjepa.dataset.containers import Containers, Place, kind_of, list_source
from sjepa.dataset.listing import Source
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
    write_tokens,
)
from sjepa.tokenizer.codec.usage import TokenUsage, entropy_line, usage_table

LISTING = "tokens.jsonl"
_TOKENS = ', "tokens": ['  # after what a line says of the recording
_BLOCK = 1 << 22  # samples that are decoded at once


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
        raise UserError(f"--out: name the {'folder to write tokens' if action == 'encode' else 'audio file'} to")
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
    """One token file per recording, and a listing of all, also of those that are there already."""
    out = Path(str(config.out))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is not a folder")
    with tempfile.TemporaryDirectory() as indexes:
        recordings = _recordings(inputs, Path(indexes))
        out.mkdir(parents=True, exist_ok=True)
        console.note(f"{model.identity}: {model.description}")
        begun, seconds, failed = time.perf_counter(), 0.0, 0
        earlier = _listed(out / LISTING)
        names = _names(recordings, earlier)
        with atomic_path(out / LISTING) as temporary, temporary.open("w", encoding="utf-8") as listing:
            _copy_lines(out / LISTING, listing, without=set(names))
            for own, name in zip(recordings, names, strict=True):
                try:
                    tokens = _encoded(own, model, config, console)
                except (DecodeError, OSError) as error:
                    console.warn(f"{own.path}: {error}")
                    failed += 1
                    continue
                write_tokens(out / name, tokens)
                _list(listing, own, name, tokens)
                seconds += tokens.seconds
    speed = _speed(seconds, time.perf_counter() - begun)
    console.note(f"{len(recordings) - failed} recordings, {speed}: {out}")
    return 2 if failed else 0


def _about(recording: Recording) -> dict[str, Any]:
    """What tells a recording from others."""
    about: dict[str, Any] = {"path": str(recording.path)}
    if recording.duration is not None:
        about |= {"start": recording.start, "segment": recording.duration}
    return about


def _list(listing: TextIO, recording: Recording, name: str, tokens: Tokens) -> None:
    """Writes a line; frame by frame, since the tokens of an hour take a hundred megabytes as
    Python's numbers."""
    about = {"file": name, **_about(recording), "duration": round(tokens.seconds, 4), "model": tokens.model}
    listing.write(json.dumps(about)[:-1] + _TOKENS)
    for frame, token_G in enumerate(tokens.tokens_TG):
        listing.write(f"{', ' if frame else ''}{token_G.tolist()}")
    listing.write("]}\n")


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """What a listing says of every recording, and the whole line."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line.split(_TOKENS)[0] + "}"), line
            except ValueError:
                raise UserError(f"{path}: not a listing of tokens, or damaged; name another folder") from None


def _listed(path: Path) -> dict[str, dict[str, Any]]:
    """By name of the token file."""
    return {str(about.get("file")): about for about, _ in _lines(path)}


def _copy_lines(path: Path, listing: TextIO, *, without: set[str]) -> None:
    """Lines of token files that are not made anew."""
    for about, line in _lines(path):
        if about.get("file") not in without:
            listing.write(line)


class _Blocks:
    """Samples from `first` to `end` of a recording, decoded in blocks of some minutes: compressed
    files are decoded from their beginning for every block."""

    def __init__(self, decode: Callable[[int, int], Waveform], first: int, end: int) -> None:
        self._decode, self._first, self._end = decode, first, end
        self._start, self._block = 0, np.zeros(0, np.float32)

    def __call__(self, start: int, stop: int) -> Waveform:
        start, stop = self._first + start, self._first + stop
        if start < self._start or stop > self._start + len(self._block):
            self._start = start
            self._block = self._decode(start, min(self._end, max(stop, start + _BLOCK)))
        return self._block[start - self._start : stop - self._start]


def _encoded(recording: Recording, model: TokenModel, config: TokenRun, console: Console) -> Tokens:
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

        read = _Blocks(decode, first, end)
        total = len(window_frames(-(-(end - first) // hop), max(2, longest), overlap))
        pieces = encode_windows(model, read, end - first, longest=max(2, longest), overlap=overlap)
        found = np.concatenate(list(console.progress(pieces, total=total, label=recording.path.name)))
    return Tokens(found, end - first, rate, hop, model.vocabulary, model.identity)


def _decode(path: Path, model: TokenModel, out: Path, console: Console) -> int:
    tokens = read_tokens(path)
    check_model(tokens, model, path)
    if out.suffix.lower() not in KINDS:
        raise UserError(f"--out: {out}: the name must end in .wav or .flac")
    begun = time.perf_counter()
    with audio_file(out, tokens.sample_rate) as file:
        for piece in decode_pieces(model, tokens):
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


class Recording(NamedTuple):
    """`path`: where it is, for archives the archive's path and the name inside; `start` and
    `duration` (None: to the end) in seconds, for segments of manifests."""

    path: Path
    open: Callable[[], BinaryIO]
    start: float = 0.0
    duration: float | None = None


def _recordings(inputs: Sequence[Path], indexes: Path) -> list[Recording]:
    """Audio files, and those of folders, archives and manifests, each once. `indexes`: folder for
    those of compressed archives. Raises UserError."""
    containers, found = Containers(), []
    for number, path in enumerate(inputs):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        kind = "folder" if path.is_dir() else kind_of(path)
        if kind is None or kind == "h5":
            found.append(Recording(path, partial(_file, path)))
            continue
        source, index = Source(path, kind), indexes / f"{number}.index"
        refs = list_source(source, index).refs
        if not refs:
            raise UserError(f"{path}: no audio file in this {'folder' if kind == 'folder' else 'file'}")
        for ref in refs:
            place = Place(ref.name, ref.offset, ref.size, index if index.exists() else None)
            parent = path.parent if kind in ("jsonl", "tsv") else path
            opened = partial(containers.open, source, place)
            found.append(Recording(parent / ref.name, opened, ref.start_seconds, ref.duration_seconds))
    return list({(own.path, own.start, own.duration): own for own in found}.values())


def _file(path: Path) -> BinaryIO:
    return path.open("rb")


def _names(recordings: Sequence[Recording], earlier: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the token files; longer ones where two recordings, also `earlier` ones of the same
    folder, would share theirs."""
    found: dict[str, None] = {}
    for own in recordings:
        stem = own.path.stem if own.duration is None else f"{own.path.stem}_{own.start:.3f}"
        parents = [parent.name for parent in own.path.absolute().parents if parent.name]
        longer = ("_".join([*reversed(parents[:count]), stem]) for count in range(len(parents) + 1))
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        for name in itertools.chain(longer, numbered):
            file = f"{name}.npz"
            other = earlier.get(file)
            if file not in found and (other is None or _about(own).items() <= other.items()):
                found[file] = None
                break
    return list(found)
