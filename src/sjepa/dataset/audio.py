"""Decoding: any format to mono float32 at the model's rate, whole or a window of it.

libsndfile reads what it can (wav, flac, ogg, opus, mp3, aiff, …); PyAV reads the rest (m4a, aac, webm, …).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

# libsndfile's seeks into these land on the exact sample; for the others a window is cut from a full decode
_EXACT_SEEK = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
_RESAMPLER_MARGIN_SECONDS = 0.1  # the filter's reach is shorter, so a window equals the slice of the whole
_LARGEST_SAMPLE = 2.0**31  # integers of 32 bits that were written as floats are the largest seen
_AV_PREROLL_SECONDS = 0.25  # decoders of lossy formats need a few packets before their output is right


class DecodeError(Exception):
    """Why one clip cannot be used."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file says of itself: its length at its own rate, its rate (Hz) and its channels."""

    samples: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def resampled_length(samples: Any, rate: Any, target_rate: int) -> Any:
    """Samples that `samples` at `rate` become at `target_rate` (integers or arrays): the one definition of a length."""
    return samples * target_rate // rate


def probe(file: BinaryIO) -> AudioInfo:
    """Length, rate and channels, from the header where it states them. Raises DecodeError."""
    try:
        with _open(file) as reader:
            info = reader.info
    except Exception as error:  # bytes of any kind make the decoders raise anything; it always means: not usable
        raise DecodeError(_reason(error)) from None
    if info.samples <= 0:
        raise DecodeError("no samples")
    return info


def decode(file: BinaryIO, *, start: int = 0, stop: int | None = None) -> tuple[Waveform, int]:
    """Samples [start, stop) at the file's own rate, channels averaged: float32 in −1…1, and the rate in Hz.

    Fewer samples come back where the file ends early. Raises DecodeError on damage, on no samples, on NaN and on values that
    no recording has.
    """
    try:
        with _open(file) as reader:
            mono, rate = reader.read(start, stop), reader.info.rate
    except Exception as error:  # bytes of any kind make the decoders raise anything; it always means: not usable
        raise DecodeError(_reason(error)) from None
    if not len(mono):
        raise DecodeError("no samples")
    peak = float(np.abs(mono).max())
    if not math.isfinite(peak):
        raise DecodeError("samples that are not finite numbers")
    if peak > _LARGEST_SAMPLE:
        raise DecodeError(f"samples of up to {peak:.1e}, which no recording has (full scale is 1)")
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
    return mono


def resample(mono: Waveform, rate: float, target_rate: float) -> Waveform:
    """Band-limited resampling (soxr, high quality); only the ratio of the rates counts."""
    if rate == target_rate:
        return mono
    return np.asarray(soxr.resample(mono, rate, target_rate, quality="HQ"), dtype=np.float32)


def _open(file: BinaryIO) -> Any:
    """A reader with `info` and `read(start, stop)`: libsndfile's if it knows the format, else PyAV's."""
    if not file.seek(0, io.SEEK_END):
        raise DecodeError("empty file")
    file.seek(0)
    try:
        return _SndfileReader(file)
    except soundfile.LibsndfileError as error:
        file.seek(0)
        try:
            return _AvReader(file)
        except DecodeError:
            raise
        except Exception:
            raise error from None  # neither knows it: libsndfile's words are the plainer ones


class _SndfileReader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = soundfile.SoundFile(file)
        self.info = AudioInfo(self._file.frames, self._file.samplerate, self._file.channels)

    def __enter__(self) -> _SndfileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int | None) -> Waveform:
        if start and self._file.format in _EXACT_SEEK:
            self._file.seek(min(start, self._file.frames))
            samples = self._file.read(-1 if stop is None else stop - start, dtype="float32", always_2d=True)
        else:
            samples = self._file.read(-1 if stop is None else stop, dtype="float32", always_2d=True)[start:]
        return _to_mono(samples)


class _AvReader:
    def __init__(self, file: BinaryIO) -> None:
        self._container = av.open(file, mode="r", metadata_errors="replace")
        try:
            if not self._container.streams.audio:
                raise DecodeError("no audio stream")
            self._stream = self._container.streams.audio[0]
            rate, channels = getattr(self._stream, "rate", 0), getattr(self._stream, "channels", 0)
            if not rate:
                raise DecodeError("no sample rate")
            self.info = AudioInfo(self._length(rate), rate, channels)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> _AvReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _exact(self) -> bool:
        """Whether the stream counts time in its own samples, so that positions and its stated length are exact."""
        base = self._stream.time_base
        return base is not None and base * self._stream.rate == 1

    def _length(self, rate: int) -> int:
        """The stated length where it is exact; else the packets are counted (not decoded)."""
        if self._exact() and self._stream.duration:
            return int(self._stream.duration)
        base, total = self._stream.time_base, 0
        for packet in self._container.demux(self._stream):
            total += packet.duration or 0
        self._container.seek(0)
        return round(float(total * base) * rate) if base is not None else 0

    def read(self, start: int, stop: int | None) -> Waveform:
        """Decodes from a little before `start` where positions are exact, else from the beginning; never past `stop`."""
        origin = self._stream.start_time or 0
        preroll = start - int(_AV_PREROLL_SECONDS * self.info.rate)
        seeks = preroll > 0 and self._exact()
        if seeks:
            self._container.seek(origin + preroll, stream=self._stream)
        pieces: list[Waveform] = []
        position: int | None = None
        for frame in self._container.decode(self._stream):
            if position is None:
                position = frame.pts - origin if seeks and frame.pts is not None else 0
            mono = _frame_to_mono(frame)
            low = max(0, start - position)
            high = len(mono) if stop is None else max(0, min(len(mono), stop - position))
            pieces.append(mono[low:high])
            position += len(mono)
            if stop is not None and position >= stop:
                break
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _to_mono(samples: NDArray[np.float32]) -> Waveform:
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _frame_to_mono(frame: Any) -> Waveform:
    values = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples × channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "f":
        scaled = values.astype(np.float32)
    elif values.dtype == np.uint8:
        scaled = (values.astype(np.float32) - 128) / 128
    else:
        scaled = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return np.ascontiguousarray(_to_mono(scaled.T))


def _reason(error: BaseException) -> str:
    if isinstance(error, DecodeError):
        return str(error)
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".") or type(error).__name__
