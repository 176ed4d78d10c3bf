"""Audio decoding: any format to mono float32 at the model's sample rate, whole files or windows.

libsndfile decodes the formats it supports (wav, flac, ogg, opus, mp3, aiff, …), through
`sjepa.inference`, which `runinfer` uses too; PyAV decodes the others (m4a, aac, webm, …).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from sjepa.inference import Downmix, Sound, SoundError, UnknownFormatError, check_rate, ends_early

Waveform = NDArray[np.float32]

# containers with sample-accurate timestamps, also after a seek
_EXACT_SEEK = frozenset({"mov", "mp4"})
_THE_END = 1 << 62  # samples: more than any file has
# more than half the filter length: a window equals the slice of the resampled clip
_RESAMPLER_MARGIN_SECONDS = 0.1
_AV_CHANNELS = 8
_AV_TAIL_SECONDS = 1.0  # decoded before the stated end, which is off by some packets
_AV_PREROLL_SECONDS = 0.25  # lossy decoders need a few packets of pre-roll


class DecodeError(Exception):
    """A clip cannot be decoded or is not usable; the message gives the reason."""


@dataclass(frozen=True)
class AudioInfo:
    """Samples at the file's own rate, rate (Hz) and channels. `levels`: level statistics, if the
    file was decoded completely to measure its length."""

    samples: int
    rate: int
    channels: int
    levels: Downmix | None = None

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def resampled_length(samples: Any, rate: Any, target_rate: int) -> Any:
    """Length of `samples` after resampling from `rate` to `target_rate` (integers or arrays)."""
    return samples * target_rate // rate


def probe(file: BinaryIO, *, measure: bool = True) -> AudioInfo:
    """Length, rate and channels. `measure`: decode the whole file if the length in its header is
    not reliable. Raises DecodeError."""
    with _reading(file) as reader:
        samples = reader.measure() if measure else reader.samples
        info = AudioInfo(
            samples, reader.rate, reader.channels, reader.downmix if measure and not reader.exact else None
        )
    if info.samples <= 0:
        raise DecodeError("no samples")
    return info


def verify(file: BinaryIO, claimed: int, parts: list[tuple[int, int]]) -> Downmix:
    """Decodes samples [start, stop) of each part and returns their level statistics. `claimed`: the
    stated length of the file. Raises DecodeError, also if a part is shorter than requested."""
    with _reading(file) as reader:
        for start, stop in parts:
            found = len(reader.read(start, stop))
            if found < stop - start:
                raise DecodeError(ends_early(start + found, claimed, reader.rate))
        levels: Downmix = reader.downmix
        return levels


def decode(file: BinaryIO, *, start: int = 0, stop: int | None = None) -> tuple[Waveform, int]:
    """Samples [start, stop) at the file's own rate, channels averaged: float32 in −1…1, and the
    rate in Hz.

    Returns fewer samples if the file ends early. Raises DecodeError if the file is corrupt or has
    no samples, NaN or out-of-range values.
    """
    with _reading(file) as reader:
        mono, rate = reader.read(start, _THE_END if stop is None else stop), reader.rate
    if not len(mono):
        raise DecodeError("no samples")
    return mono, rate


def decode_window(file: BinaryIO, info: AudioInfo, *, start: int, length: int, rate: int, first: int = 0) -> Waveform:
    """`length` samples from `start` on, counted at `rate`, of a clip that begins at sample `first`
    of its file.

    `info.samples` is the clip's length at the file's own rate. Only the window and a margin for the
    resampling filter are decoded; the result equals that slice of the resampled clip, truncated at
    the clip's end. Raises DecodeError, also if the file's rate is not `info.rate`.
    """
    if info.rate == rate:
        stop = min(start + length, info.samples)
        return _decode_at(file, info.rate, first + start, first + stop)
    # whole periods of the rate ratio, to stay on the sample grid of the resampled clip
    common = math.gcd(info.rate, rate)
    native_block, block = info.rate // common, rate // common
    margin = -(-int(_RESAMPLER_MARGIN_SECONDS * rate) // block)
    first_block = max(0, start // block - margin)
    last_block = -(-(start + length) // block) + margin
    native_stop = min(info.samples, last_block * native_block)
    native = _decode_at(file, info.rate, first + first_block * native_block, first + native_stop)
    skip = start - first_block * block
    stop = min(skip + length, resampled_length(len(native), info.rate, rate))
    return resample(native, info.rate, rate)[skip:stop]


def _decode_at(file: BinaryIO, rate: int, start: int, stop: int) -> Waveform:
    mono, found = decode(file, start=start, stop=stop)
    if found != rate:
        raise DecodeError(f"{found} Hz, where {rate} Hz were found when it was scanned: the file has changed")
    if len(mono) < stop - start:
        raise DecodeError(ends_early(start + len(mono), stop, rate, by="the scan found"))
    return mono


def resample(mono: Waveform, rate: float, target_rate: float) -> Waveform:
    """Band-limited resampling (soxr, high quality); depends on the ratio of the rates only."""
    if rate == target_rate:
        return mono
    return np.asarray(soxr.resample(mono, rate, target_rate, quality="HQ"), dtype=np.float32)


@contextmanager
def _reading(file: BinaryIO) -> Iterator[Any]:
    """A libsndfile reader if the format is supported, else a PyAV reader; closed on exit.
    Exceptions in the body are re-raised as DecodeError."""
    reader: Any = None
    try:
        try:
            reader = Sound(file)
        except UnknownFormatError as error:
            reader = _by_av(file, error)
        yield reader
    except DecodeError:
        raise
    except Exception as error:  # corrupt input makes the decoders raise arbitrary exceptions
        raise DecodeError(_reason(error)) from None
    finally:
        if reader is not None:
            reader.close()


def _by_av(file: BinaryIO, error: UnknownFormatError) -> _AvReader:
    try:
        return _AvReader(file)
    except SoundError:
        raise
    except Exception:
        raise error from None  # neither supports it: libsndfile's message is clearer


class _AvReader:
    """Reader with the interface of `Sound`, using PyAV."""

    def __init__(self, file: BinaryIO) -> None:
        self.downmix = Downmix()
        self._file = file
        self._container: Any = None
        self._open()
        try:
            check_rate(self.rate)
        except SoundError:
            self.close()
            raise

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    @property
    def samples(self) -> int:
        return self.measure()

    def measure(self) -> int:
        """Length in samples: from the last packets if seeks are exact, else by full decoding."""
        stated = int(self._stream.duration or 0)
        if stated and self.exact:
            tail = max(0, stated - round(_AV_TAIL_SECONDS * self.rate))
            return tail + len(self.read(tail, _THE_END))
        if self._begun:
            self._open()
        return sum(len(mono) for mono, _ in self._decoded())

    def read(self, start: int, stop: int) -> Waveform:
        """Samples [start, stop). Seeks close to `start` if seeks are exact, else decodes from 0."""
        origin = self._stream.start_time or 0
        preroll = start - int(_AV_PREROLL_SECONDS * self.rate)
        seeks = preroll > 0 and self.exact
        if self._begun:
            self._open()
        if seeks:
            self._container.seek(origin + preroll, stream=self._stream)
        pieces: list[Waveform] = []
        position: int | None = None
        for mono, time in self._decoded():
            if position is None:
                position = time - origin if seeks and time is not None else 0
            pieces.append(mono[max(0, start - position) : max(0, stop - position)])
            position += len(mono)
            if position >= stop:
                break
        return np.concatenate([*pieces, np.zeros(0, np.float32)])

    def _open(self) -> None:
        """Opens or reopens the container: seeking back to 0 may lose its first packets."""
        self.close()
        self._begun = False
        self._file.seek(0)
        self._container = av.open(self._file, mode="r", metadata_errors="replace")
        if not self._container.streams.audio:
            self.close()
            raise DecodeError("no audio stream")
        self._stream = self._container.streams.audio[0]
        self.rate, self.channels = getattr(self._stream, "rate", 0), getattr(self._stream, "channels", 0)
        base, formats = self._stream.time_base, self._container.format.name.split(",")
        self.exact = bool(self.rate and base is not None and base * self.rate == 1 and _EXACT_SEEK & set(formats))

    def _decoded(self) -> Iterator[tuple[Waveform, int | None]]:
        """Decoded mono blocks with their timestamp (in samples if seeks are exact)."""
        self._begun = True
        for frame in self._container.decode(self._stream):
            if frame.sample_rate != self.rate:
                raise DecodeError(f"its rate changes, from {self.rate} to {frame.sample_rate} Hz")
            yield self.downmix(_samples_of(frame)), frame.pts


def _samples_of(frame: Any) -> NDArray[np.float32]:
    """[S, C] in −1…1. Raises DecodeError for planar audio with more channels than PyAV supports."""
    if frame.format.is_planar and frame.layout.nb_channels > _AV_CHANNELS:
        raise DecodeError(f"{frame.layout.nb_channels} channels")
    values = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples × channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == "f":
        return np.asarray(values, dtype=np.float32)
    if values.dtype == np.uint8:
        return np.asarray((values.astype(np.float32) - 128) / 128)
    return np.asarray(values.astype(np.float32) / -float(np.iinfo(values.dtype).min))


def _reason(error: BaseException) -> str:
    if isinstance(error, SoundError):
        return str(error)
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".") or type(error).__name__
