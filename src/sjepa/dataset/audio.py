"""Decoding: any format to mono float32 at the model's rate, whole or a window of it.

libsndfile reads what it can (wav, flac, ogg, opus, mp3, aiff, …), in the file that also reads for `runinfer`; PyAV reads the
rest (m4a, aac, webm, …).
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

_EXACT_SEEK = frozenset({"mov", "mp4"})  # containers whose positions are those of the samples, after a seek too
_THE_END = 1 << 62  # samples: no file has them
_RESAMPLER_MARGIN_SECONDS = 0.1  # the filter's reach is shorter, so a window equals the slice of the whole
_AV_CHANNELS = 8
_AV_TAIL_SECONDS = 1.0  # before the stated end, which is some packets off
_AV_PREROLL_SECONDS = 0.25  # decoders of lossy formats need a few packets before their output is right


class DecodeError(Exception):
    """Why one clip cannot be used."""


@dataclass(frozen=True)
class AudioInfo:
    """A file's length at its own rate, its rate (Hz) and its channels. `levels`: how loud it is, if it was decoded to the
    end to know its length."""

    samples: int
    rate: int
    channels: int
    levels: Downmix | None = None

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def resampled_length(samples: Any, rate: Any, target_rate: int) -> Any:
    """Samples that `samples` at `rate` become at `target_rate` (integers or arrays): the one definition of a length."""
    return samples * target_rate // rate


def probe(file: BinaryIO, *, measure: bool = True) -> AudioInfo:
    """Length, rate and channels. `measure`: decode it to the end where the header is no proof of the length. Raises
    DecodeError."""
    with _reading(file) as reader:
        samples = reader.measure() if measure else reader.samples
        info = AudioInfo(
            samples, reader.rate, reader.channels, reader.downmix if measure and not reader.exact else None
        )
    if info.samples <= 0:
        raise DecodeError("no samples")
    return info


def verify(file: BinaryIO, claimed: int, parts: list[tuple[int, int]]) -> Downmix:
    """Decodes samples start … stop−1 of each part of a file that claims to have so many; how loud they are. Raises
    DecodeError."""
    with _reading(file) as reader:
        for start, stop in parts:
            found = len(reader.read(start, stop))
            if found < stop - start:
                raise DecodeError(ends_early(start + found, claimed, reader.rate))
        levels: Downmix = reader.downmix
        return levels


def decode(file: BinaryIO, *, start: int = 0, stop: int | None = None) -> tuple[Waveform, int]:
    """Samples [start, stop) at the file's own rate, channels averaged: float32 in −1…1, and the rate in Hz.

    Fewer samples come back where the file ends early. Raises DecodeError on damage, on no samples, on NaN and on values that
    no recording has.
    """
    with _reading(file) as reader:
        mono, rate = reader.read(start, _THE_END if stop is None else stop), reader.rate
    if not len(mono):
        raise DecodeError("no samples")
    return mono, rate


def decode_window(file: BinaryIO, info: AudioInfo, *, start: int, length: int, rate: int, first: int = 0) -> Waveform:
    """`length` samples from `start` on, counted at `rate`, of a clip that begins at sample `first` of its file.

    `info.samples` is the clip's length at the file's own rate. Only the window and the resampler's reach are decoded,
    and the samples equal that slice of the whole clip resampled. Shorter where the clip ends. Raises DecodeError, also if
    the file has another rate by now.
    """
    if info.rate == rate:
        stop = min(start + length, info.samples)
        return _decode_at(file, info.rate, first + start, first + stop)
    # whole blocks of the two rates' common period, so that the resampled window keeps the sample grid of the whole
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
    """Band-limited resampling (soxr, high quality); only the ratio of the rates counts."""
    if rate == target_rate:
        return mono
    return np.asarray(soxr.resample(mono, rate, target_rate, quality="HQ"), dtype=np.float32)


@contextmanager
def _reading(file: BinaryIO) -> Iterator[Any]:
    """A reader, closed afterwards: libsndfile's if it knows the format, else PyAV's. Raises DecodeError, for all that fails
    inside too."""
    reader: Any = None
    try:
        try:
            reader = Sound(file)
        except UnknownFormatError as error:
            reader = _by_av(file, error)
        yield reader
    except DecodeError:
        raise
    except Exception as error:  # bytes of any kind make the decoders raise anything; it always means: not usable
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
        raise error from None  # neither knows it: libsndfile's words are the plainer ones


class _AvReader:
    """What `Sound` is, by PyAV."""

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
        """Where the last packets end if positions are exact; else all is decoded and counted."""
        stated = int(self._stream.duration or 0)
        if stated and self.exact:
            tail = max(0, stated - round(_AV_TAIL_SECONDS * self.rate))
            return tail + len(self.read(tail, _THE_END))
        if self._begun:
            self._open()
        return sum(len(mono) for mono, _ in self._decoded())

    def read(self, start: int, stop: int) -> Waveform:
        """Decodes from a little before `start` where positions are exact, else from the beginning; never past `stop`."""
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
        """Anew, where it was read from: a container that is wound back may leave out its first packets."""
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
        """Samples and their time, in samples if times are exact."""
        self._begun = True
        for frame in self._container.decode(self._stream):
            if frame.sample_rate != self.rate:
                raise DecodeError(f"its rate changes, from {self.rate} to {frame.sample_rate} Hz")
            yield self.downmix(_samples_of(frame)), frame.pts


def _samples_of(frame: Any) -> NDArray[np.float32]:
    """[S, C] in −1…1. Raises DecodeError for more channels than PyAV has places for."""
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
