"""Features of recordings from an exported encoder, in one file that stands alone.

It needs numpy, soundfile, onnxruntime and (for a configuration) PyYAML, and nothing of the package it comes with: copy it
into any project. From Python:

    model = Model("encoder.onnx")
    features = model.file("clip.wav")        # [frames, width] float32

S samples, T frames, D width.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import soundfile
import yaml
from numpy.typing import NDArray

Array = NDArray[np.float32]

_ENDINGS = frozenset([".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"])
_CHUNK_SECONDS, _CONTEXT_SECONDS = 30.0, 2.0
_ZERO_CROSSINGS, _KAISER_BETA, _ROLLOFF = 48, 12.0, 0.96
_BLOCK = 1 << 14
_LARGEST_SAMPLE = 2.0**31  # integers of 32 bits that were written as floats are the largest seen


class InputError(Exception):
    """What is wrong with what was given, in one line."""


class RecordingError(InputError):
    """What is wrong with one recording; others may be all right."""


class Resampler:
    """Windowed-sinc polyphase resampling of a recording at `rate` Hz to `target`, any part of it by itself."""

    def __init__(self, rate: int, target: int) -> None:
        common = gcd(rate, target)
        self.up, self.down = target // common, rate // common
        self.same = rate == target
        cutoff = _ROLLOFF * min(1.0, target / rate)  # of the lower of the two Nyquist frequencies
        self.reach = int(np.ceil(_ZERO_CROSSINGS / cutoff))  # samples of the recording on either side
        offset = np.arange(-self.reach, self.reach + 1)[None, :] - np.arange(self.up)[:, None] / self.up
        window = np.kaiser(2 * 4096 + 1, _KAISER_BETA)
        place = np.clip((offset / (self.reach + 1) + 1) * 4096, 0, 2 * 4096)
        taps = cutoff * np.sinc(cutoff * offset) * np.interp(place, np.arange(2 * 4096 + 1), window)
        self._taps = (taps / taps.sum(1, keepdims=True)).astype(np.float32)  # [phase, tap]

    def length(self, samples: int) -> int:
        """Samples that a recording of `samples` becomes."""
        return samples * self.up // self.down

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The samples of the recording, some before its start or after its end, that outputs start … stop−1 depend on."""
        if self.same:
            return start, stop
        return start * self.down // self.up - self.reach, (stop - 1) * self.down // self.up + self.reach + 1

    def __call__(self, piece: Array, start: int, stop: int) -> Array:
        """Outputs start … stop−1 from just what `needs` says."""
        if self.same:
            return piece
        first = start * self.down // self.up
        width, parts = self._taps.shape[1], []
        windows = np.lib.stride_tricks.sliding_window_view(piece, width)
        for begin in range(start, stop, _BLOCK):
            position = np.arange(begin, min(begin + _BLOCK, stop)) * self.down
            parts.append(np.einsum("nt,nt->n", windows[position // self.up - first], self._taps[position % self.up]))
        return np.concatenate(parts).astype(np.float32)


class Recording:
    """An audio file as mono float32 at `target` Hz, read in any pieces."""

    def __init__(self, path: Path, target: int) -> None:
        """Raises RecordingError if there is no such file or it is not audio."""
        try:
            self._bytes = path.open("rb")  # libsndfile looks at a file's neighbours if it knows its name
        except (OSError, ValueError) as error:
            raise RecordingError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
        try:
            self._file = soundfile.SoundFile(self._bytes)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            self._bytes.close()
            raise RecordingError(f"{path}: not audio that libsndfile reads ({_said(error)})") from None
        self._path, self._resampler = path, Resampler(self._file.samplerate, target)
        self.samples = self._resampler.length(self._file.frames)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._bytes.close()

    def read(self, start: int, stop: int) -> Array:
        """Samples start … stop−1. Raises RecordingError if the file is damaged there."""
        low, high = self._resampler.needs(start, stop)
        inside = max(0, low), min(self._file.frames, high)
        try:
            self._file.seek(inside[0])
            piece = self._file.read(inside[1] - inside[0], dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise RecordingError(f"{self._path}: damaged ({_said(error)})") from None
        peak = np.abs(piece).max(initial=0.0)
        if not np.isfinite(peak):
            raise RecordingError(f"{self._path}: samples that are not finite numbers")
        if peak > _LARGEST_SAMPLE:
            raise RecordingError(f"{self._path}: samples of up to {peak:.1e}, which no recording has (full scale is 1)")
        missing = inside[1] - inside[0] - len(piece)
        padded = np.pad(piece, (inside[0] - low, high - inside[1] + missing))
        return self._resampler(padded.astype(np.float32), start, stop)


class Span(NamedTuple):
    """Samples start … stop−1 go through the encoder together, and of their frames first … last−1 are taken."""

    start: int
    stop: int
    first: int
    last: int


class Model:
    """An encoder that `exportw` wrote."""

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        """Raises InputError if it is missing or something else."""
        if not Path(path).exists():
            raise InputError(f"{path}: no such file; exportw writes it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own
            raise InputError(f"{path}: not an ONNX model ({' '.join(str(error).split())[:120]})") from None
        about = self._session.get_modelmeta().custom_metadata_map
        names = [item.name for item in self._session.get_inputs()]
        if names != ["waveform", "lengths"] or "sample_rate" not in about:
            raise InputError(f"{path}: an ONNX model, but not an encoder that exportw wrote")
        self.sample_rate, self.hop, self.receptive_field = (
            int(about[name]) for name in ("sample_rate", "hop_samples", "receptive_field_samples")
        )
        self.width, self.num_layers = int(about["width"]), int(about["num_layers"])
        self._has_layers = len(self._session.get_outputs()) > 2

    def frames(self, samples: int) -> int:
        """Frames of `samples` samples at `sample_rate`."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)

    def __call__(self, waveform: Array, *, layer: int | None = None) -> Array:
        """[S] float32 in −1…1 at `sample_rate` to [T, D]; of layer `layer` (from 0, negative from the top) or the last."""
        name = "features" if layer is None else "layers"
        (output,) = self._session.run(
            [name], {"waveform": waveform[None].astype(np.float32), "lengths": np.array([len(waveform)], np.int64)}
        )
        chosen: Array = output[0] if layer is None else output[0, layer]
        return chosen

    def file(self, path: str | Path, *, layer: int | None = None, chunk_seconds: float = _CHUNK_SECONDS) -> Array:
        """[T, D] of a whole recording of any rate and length; long ones in chunks (see `spans`)."""
        with Recording(Path(path), self.sample_rate) as recording:
            parts = list(self.chunks(recording, str(path), layer=layer, chunk_seconds=chunk_seconds))
        return np.concatenate(parts)

    def chunks(
        self, recording: Recording, name: str, *, layer: int | None = None, chunk_seconds: float = _CHUNK_SECONDS
    ) -> Iterator[Array]:
        """The features piece by piece, so that memory stays flat. Raises InputError, a RecordingError if it is the
        recording's."""
        if layer is not None and not self._has_layers:
            raise InputError("--layer: this model gives the last layer alone; export it with export.all_layers=true")
        if layer is not None and not -self.num_layers <= layer < self.num_layers:
            raise InputError(f"--layer: {layer} is outside the {self.num_layers} layers of this model")
        if recording.samples < self.receptive_field:
            raise RecordingError(
                f"{name}: {recording.samples} samples at {self.sample_rate} Hz are too short for a frame "
                f"({self.receptive_field})"
            )
        for span in self.spans(recording.samples, chunk_seconds):
            yield self(recording.read(span.start, span.stop), layer=layer)[span.first : span.last]

    def spans(self, samples: int, chunk_seconds: float = _CHUNK_SECONDS) -> list[Span]:
        """Chunks of a recording, which overlap by a context on either side that gives no frames of its own, so that every
        frame comes once and has its place in time. One chunk if the recording is hardly longer."""
        total = self.frames(samples)
        context = round(_CONTEXT_SECONDS * self.sample_rate / self.hop)
        size = max(1, round(chunk_seconds * self.sample_rate / self.hop))
        if total <= size + 2 * context:
            return [Span(0, samples, 0, total)]
        found = []
        for begin in range(0, total, size):
            end = min(total, begin + size)
            low, high = max(0, begin - context), min(total, end + context)
            stop = samples if high == total else (high - 1) * self.hop + self.receptive_field
            found.append(Span(low * self.hop, stop, begin - low, end - low))
        return found


def main(arguments: list[str] | None = None, *, prog: str = "runinfer", version: str | None = None) -> int:
    """Prints, and on request writes, the features of recordings. 0 done, 2 mistakes, a line each, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know the characters of a name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(prog=prog, description="Features of recordings from an exported encoder.")
    parser.add_argument("-c", "--config", type=Path, help="YAML with onnx_path and audio")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="onnx_path=… or audio=… instead of the file's"
    )
    parser.add_argument("--model", type=Path, help="the ONNX file (default: the configuration's onnx_path)")
    parser.add_argument(
        "--audio", type=Path, nargs="+", help="recordings or folders (default: the configuration's audio)"
    )
    parser.add_argument(
        "--out", type=Path, help="write features [frames, width] as .npy; a folder for several recordings"
    )
    parser.add_argument(
        "--layer", type=int, help="features of this layer, from 0, negative from the top (default: the last)"
    )
    parser.add_argument(
        "--chunk", type=float, default=_CHUNK_SECONDS, help="seconds that go through the encoder at a time"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime (default: all cores)")
    if version is not None:
        parser.add_argument("--version", action="version", version=f"{prog} {version}")
    options = parser.parse_intermixed_args(arguments)
    failed: list[RecordingError] = []
    try:
        try:
            _run(options, failed)
        finally:
            for failure in failed:
                print(f"{prog}: {failure}", file=sys.stderr)
        return 2 if failed else 0
    except InputError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, failed: list[RecordingError]) -> None:
    """Does all recordings that can be done; why the others cannot goes to `failed`."""
    settings = _settings(options.config, options.overrides)
    path = options.model or settings.get("onnx_path")
    given = options.audio or ([Path(settings["audio"])] if settings.get("audio") else [])
    if path is None:
        raise InputError("no model: give --model FILE.onnx, or a configuration with onnx_path")
    recordings = list(dict.fromkeys(found for place in given for found in _recordings(place)))
    if not recordings:
        raise InputError("no recording: give --audio FILE, or a configuration with audio")
    if not options.chunk > 0:
        raise InputError(f"--chunk: {options.chunk:g} is not a time in seconds")
    many = len(recordings) > 1 or any(place.is_dir() for place in given)
    targets = _targets(options.out, recordings, many)
    model = Model(path, threads=options.threads)
    for recording, target in zip(recordings, targets, strict=True):
        try:
            _one(model, recording, target, options)
        except RecordingError as error:
            failed.append(error)


def _one(model: Model, path: Path, target: Path | None, options: argparse.Namespace) -> None:
    """Features of one recording: figures to the terminal, all of them to `target`."""
    started, frames = time.perf_counter(), 0
    total, squares, low, high = 0.0, 0.0, np.inf, -np.inf
    with Recording(path, model.sample_rate) as recording:
        seconds = recording.samples / model.sample_rate
        with _Output(target, (model.frames(recording.samples), model.width)) as output:
            for part in model.chunks(recording, str(path), layer=options.layer, chunk_seconds=options.chunk):
                values = part.astype(np.float64)
                frames, total, squares = frames + len(part), total + values.sum(), squares + np.square(values).sum()
                low, high = min(low, float(part.min())), max(high, float(part.max()))
                output.add(part)
    took, count = time.perf_counter() - started, frames * model.width
    mean = total / count
    deviation = np.sqrt(max(0.0, squares / count - mean**2))
    written = f", written to {target}" if target is not None else ""
    rate = model.sample_rate / model.hop
    print(
        f"{path}: features [{frames}, {model.width}] at {rate:g} frames per second from {seconds:.2f} s of audio{written}"
    )
    print(f"    mean {mean:.4f}, deviation {deviation:.4f}, {low:.3f} to {high:.3f}")
    print(f"    {took:.2f} s, real-time factor {took / seconds:.3f}")


class _Output:
    """A .npy file that is filled part by part and takes its name when it is whole; without a target nothing happens."""

    def __init__(self, target: Path | None, shape: tuple[int, int]) -> None:
        """Raises InputError if it cannot be written."""
        self._target = target
        if target is None:
            return
        self._temporary = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
        except OSError as error:
            raise self._failed(error) from None

    def add(self, part: Array) -> None:
        if self._target is None:
            return
        try:
            self._file.write(np.ascontiguousarray(part, "<f4").tobytes())
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._target is None:
            return
        try:
            self._file.close()
            if kind is None:
                self._temporary.replace(self._target)
            else:
                self._temporary.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> InputError:
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        return InputError(f"{self._target}: cannot be written ({error.strerror or error})")


def _recordings(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(
        path for path in place.rglob("*") if path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    )
    if not found:
        raise InputError(f"{place}: no recording in this folder")
    return found


def _targets(out: Path | None, recordings: list[Path], many: bool) -> list[Path | None]:
    if out is None:
        return [None] * len(recordings)
    if not many:
        return [out / f"{recordings[0].stem}.npy" if out.is_dir() else out]
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file, and there are {len(recordings)} recordings; give a folder")
    for name in (_stem, _with_folders, _with_folders_and_ending):
        targets = [out / f"{name(path)}.npy" for path in recordings]
        first: dict[str, int] = {}  # by names as file systems compare them that do not tell cases apart
        again = [(first.setdefault(str(target).casefold(), index), index) for index, target in enumerate(targets)]
        twice = [(one, other) for one, other in again if one != other]
        if not twice:
            return list(targets)
    one, other = twice[0]
    raise InputError(f"--out: {recordings[one]} and {recordings[other]} would both be written to {targets[one]}")


def _stem(path: Path) -> str:
    return path.stem


def _with_folders(path: Path) -> str:
    return "__".join(path.with_suffix("").parts[1 if path.is_absolute() else 0 :])


def _with_folders_and_ending(path: Path) -> str:
    return f"{_with_folders(path)}{path.suffix.replace('.', '_')}"


def _said(error: BaseException) -> str:
    """A library's words, without the name of an object in memory."""
    return " ".join(str(getattr(error, "error_string", error)).split())


def _settings(path: Path | None, overrides: list[str]) -> dict[str, Any]:
    settings: Any = {}
    if path is not None:
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read ({reason})") from None
        if not isinstance(settings, dict):
            raise InputError(f"{path}: not a configuration")
    for text in overrides:
        name, found, value = text.partition("=")
        if not found:
            raise InputError(f"{text}: not key=value")
        settings[name] = value
    return settings


if __name__ == "__main__":
    sys.exit(main())
