"""Feature extraction with an exported encoder, in one standalone file.

It needs numpy, soundfile, onnxruntime and (for a configuration) PyYAML, but no other module of this
package: it can be copied into any project. From Python:

    model = Model("encoder.onnx")
    features = model.file("clip.wav")        # [frames, width] float32

S samples, T frames, D width.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import stat
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile
import yaml
from numpy.typing import NDArray

Array = NDArray[np.float32]

_ENDINGS = frozenset(
    f".{name}"
    for name in "wav flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 sph nist voc".split()  # noqa: SIM905
)
_EDGE = 3  # rows and columns at each end that are printed
_CHUNK_SECONDS, _CONTEXT_SECONDS = 30.0, 2.0
_ZERO_CROSSINGS, _KAISER_BETA, _ROLLOFF = 48, 12.0, 0.96
_BLOCK = 1 << 14
_LARGEST_SAMPLE = 2.0**31  # full scale of int32 samples stored as float
_EXACT_SEEK = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST"})
_PLAIN = frozenset({"FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"})  # and PCM: constant bytes per sample
_UNKNOWN_LENGTH = 1 << 62  # or more: libsndfile's length for a FLAC of unknown length
_JOINED = "several {} streams joined in one file, of which the first alone would be read; split them"
_LONGEST_GAP, _LONGEST_JUNK = 1 << 20, 1 << 24  # bytes searched before the first frame, and between frames
_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000
_NOT_ITS_KIND = (
    1,
    4,
    18,
    161,
)  # libsndfile error codes: unknown format, unsupported encoding or feature, FLAC in Ogg
_NOTHING = np.zeros(0, np.float32)
_MOST_CHUNKS = 64
_BIT_RATES_1 = (0, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)  # of MPEG-1 layer III, in 8 kbit/s
_BIT_RATES_2 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)  # of MPEG-2 and 2.5


class InputError(Exception):
    """Invalid input; the message is one line."""


class RecordingError(InputError):
    """One recording cannot be used; others may be valid."""


def check_rate(rate: int) -> None:
    """Raises SoundError if the sampling rate (Hz) is out of range."""
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise SoundError(f"a rate of {rate} Hz, outside {_LOWEST_RATE:,} to {_HIGHEST_RATE:,} Hz")


def ends_early(found: int, expected: int, rate: int, *, by: str = "its header claims") -> str:
    """Error message for a truncated file; lengths in samples."""
    return f"ends after {found / rate:.2f} s, where {by} {expected / rate:.2f} s"


class Resampler:
    """Windowed-sinc polyphase resampling from `rate` to `target` Hz; any segment can be computed
    alone."""

    def __init__(self, rate: int, target: int) -> None:
        common = gcd(rate, target)
        self.up, self.down = target // common, rate // common
        self.same = rate == target
        cutoff = _ROLLOFF * min(1.0, target / rate)  # of the lower of the two Nyquist frequencies
        self.reach = int(np.ceil(_ZERO_CROSSINGS / cutoff))  # samples of the recording on either side
        window = np.kaiser(2 * 4096 + 1, _KAISER_BETA)
        self._taps = np.empty((self.up, 2 * self.reach + 1), np.float32)  # [phase, tap]
        for phase in range(self.up):
            offset = np.arange(-self.reach, self.reach + 1) - phase / self.up
            place = np.clip((offset / (self.reach + 1) + 1) * 4096, 0, 2 * 4096)
            taps = cutoff * np.sinc(cutoff * offset) * np.interp(place, np.arange(2 * 4096 + 1), window)
            self._taps[phase] = taps / taps.sum()

    def length(self, samples: int) -> int:
        """Number of output samples for `samples` input samples."""
        return samples * self.up // self.down

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The range of input samples that outputs start … stop−1 depend on; may exceed the
        recording at both ends."""
        if self.same:
            return start, stop
        return start * self.down // self.up - self.reach, (stop - 1) * self.down // self.up + self.reach + 1

    def __call__(self, piece: Array, start: int, stop: int) -> Array:
        """Outputs start … stop−1 from the input range given by `needs`."""
        if self.same:
            return piece
        first = start * self.down // self.up
        width, parts = self._taps.shape[1], []
        windows = np.lib.stride_tricks.sliding_window_view(piece, width)
        for begin in range(start, stop, _BLOCK):
            position = np.arange(begin, min(begin + _BLOCK, stop)) * self.down
            parts.append(np.einsum("nt,nt->n", windows[position // self.up - first], self._taps[position % self.up]))
        return np.concatenate(parts).astype(np.float32)


class SoundError(Exception):
    """A file, or a part of it, cannot be used."""


class UnknownFormatError(SoundError):
    """Not a format that libsndfile supports; another library may."""


class Downmix:
    """Averages channels and accumulates level statistics: `peak` (largest absolute sample),
    `channel_energy` (sum of squares over channels and time, divided by channels) and
    `mono_energy` (of the channel mean)."""

    def __init__(self) -> None:
        self.peak = self.channel_energy = self.mono_energy = 0.0

    def __call__(self, samples: Array) -> Array:
        """[S, C] float32 to [S]. Raises SoundError on non-finite or implausibly large samples."""
        peak = float(np.abs(samples).max(initial=0.0))
        if not np.isfinite(peak):
            raise SoundError("samples that are not finite numbers")
        if peak > _LARGEST_SAMPLE:
            raise SoundError(f"samples of up to {peak:.1e}, which no recording has (full scale is 1)")
        self.peak = max(self.peak, peak)
        if samples.shape[1] == 1:
            return samples[:, 0]
        mono: Array = samples.mean(axis=1, dtype=np.float32)
        self.channel_energy += float(np.square(samples, dtype=np.float64).sum()) / samples.shape[1]
        self.mono_energy += float(np.square(mono, dtype=np.float64).sum())
        return mono


class Sound:
    """An audio file decoded by libsndfile: channels averaged, float32, at its own `rate` (Hz).
    Wrong lengths in headers are corrected first; `samples` is the best estimate of the length
    without decoding."""

    _file: Any = None

    def __init__(self, file: BinaryIO) -> None:
        """The caller closes `file`. Raises SoundError."""
        self.downmix = Downmix()
        self._bytes = _put_right(file)
        self._open()
        if self._file.frames >= _UNKNOWN_LENGTH:
            self._bytes = _flac_of_known_length(self._bytes.buffered, self._reaches)
            self._open()
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.samples = self._file.frames if self._bytes.samples is None else self._bytes.samples
        # seeks are sample-exact in these formats; in others, decode up to the position
        is_plain = self._file.subtype.startswith("PCM") or self._file.subtype in _PLAIN
        self.exact = is_plain and self._file.format in _EXACT_SEEK and self._file.may_seek
        check_rate(self.rate)

    def close(self) -> None:
        """Does not close the underlying file."""
        if self._file is not None:
            self._file.close()

    def read(self, start: int, stop: int) -> Array:
        """Samples start … stop−1; fewer where the file ends. Raises SoundError if it is damaged
        there."""
        try:
            return self._read_there(start, stop) if self.exact else self._read_on(start, stop)
        except soundfile.LibsndfileError as error:
            raise SoundError(f"damaged ({_said(error)})") from None

    def measure(self) -> int:
        """Length in samples, counted by decoding where the header may be wrong. Raises
        SoundError."""
        if self._file.format in _MAY_BE_JOINED:
            _MAY_BE_JOINED[self._file.format](self._bytes.buffered)
            self._open()
        if self.exact:
            self._refuse_cut()
            return self.samples
        count = 0
        while length := len(self.read(count, count + _BLOCK)):
            count += length
        self.samples = count
        return count

    def _open(self) -> None:
        self.close()
        self._bytes.buffered.seek(0)
        try:
            self._file = _ReadOn(self._bytes.buffered)  # buffered: decoders read a few bytes at a time
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            kind = UnknownFormatError if getattr(error, "code", 1) in _NOT_ITS_KIND else SoundError
            raise kind(f"not audio that libsndfile reads ({_said(error)})") from None
        self._position, self._kept = 0, _NOTHING  # next sample to decode, and the latest decoded samples

    def _read_there(self, start: int, stop: int) -> Array:
        start, stop = max(0, min(start, self._file.frames)), min(stop, self._file.frames)
        self._file.seek(start)
        self._position = start
        return np.concatenate([*self._decoded(stop), _NOTHING])

    def _read_on(self, start: int, stop: int) -> Array:
        if start < self._position - len(self._kept):
            self._open()
        parts = [self._kept[max(0, len(self._kept) - (self._position - start)) :]] if start < self._position else []
        for block in self._decoded(stop):
            parts.append(block[max(0, start - self._position) :])
        self._kept = np.concatenate([*parts, _NOTHING])
        return self._kept[: max(0, stop - start)]

    def _decoded(self, stop: int) -> Iterator[Array]:
        """Decodes up to sample `stop` in blocks, so that a wrong length in the header cannot
        exhaust memory."""
        if self._bytes.samples is not None:
            stop = min(stop, self._bytes.samples)
        while self._position < stop:
            block = self._file.read(min(_BLOCK, stop - self._position), dtype="float32", always_2d=True)
            if not len(block):
                return
            yield self.downmix(block)
            self._position += len(block)

    def _refuse_cut(self) -> None:
        try:
            is_whole = len(self._read_there(self.samples - 1, self.samples)) == min(1, self.samples)
        except soundfile.LibsndfileError:
            is_whole = False
        if not is_whole:
            raise SoundError(f"damaged, or cut off before the {self.samples / self.rate:.2f} s that its header claims")

    def _reaches(self, position: int) -> bool:
        try:
            self._open()
            self._file.seek(position)
            return True
        except soundfile.LibsndfileError:
            return False


class _ReadOn(soundfile.SoundFile):  # type: ignore[misc]
    """Not seekable for soundfile, which would otherwise seek to the current position after every
    read: that resets the MP3 decoder, which needs earlier frames."""

    @property
    def may_seek(self) -> bool:
        return bool(super().seekable())

    def seekable(self) -> bool:
        return False


class _Bytes(io.RawIOBase):
    """A virtual file for libsndfile: `head`, then `parts` of the file (begin, end), then `zeros`
    zero bytes; seeks never fail. Without `parts`: the file from offset len(`head`) on.
    `samples`: number of samples to read, overriding libsndfile's."""

    def __init__(
        self,
        file: BinaryIO,
        head: bytes = b"",
        parts: list[tuple[int, int]] | None = None,
        *,
        zeros: int = 0,
        samples: int | None = None,
    ) -> None:
        self.samples = samples
        self._file, self._head, self._position = file, head, 0
        self._parts = [(len(head), file.seek(0, io.SEEK_END))] if parts is None else parts
        self._starts = np.cumsum([len(head), *(end - begin for begin, end in self._parts)]).tolist()
        self._size = self._starts[-1] + zeros

    @cached_property
    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = self._piece(min(len(buffer), max(0, self._size - self._position)))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _piece(self, most: int) -> bytes:
        number = bisect(self._starts, self._position) - 1
        if number < 0:
            return self._head[self._position : self._position + most]
        if number == len(self._parts):
            return bytes(most)
        begin, end = self._parts[number]
        place = begin + self._position - self._starts[number]
        self._file.seek(place)
        return self._file.read(min(most, end - place))


def _put_right(file: BinaryIO) -> _Bytes:
    """The file, with its header corrected where the length in it is wrong or missing."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if not size:
        raise SoundError("empty file")
    if head[:4] in _CHUNKED and (head[8:] == b"WAVE" or head[:4] == b"caff"):
        return _with_sizes(file, size, head)
    if head[:4] == b".snd" and not any(head[8:12]):  # Sun AU: all bits set means unknown length
        file.seek(0)
        return _Bytes(file, file.read(8) + b"\xff" * 4)
    if head[:3] == b"ID3" or _mpeg_frame(head[:4]) is not None:
        return _mpeg(file, size) or _Bytes(file)
    return _Bytes(file)


class _Chunks(NamedTuple):
    """Chunk layout of a format: offset of the first chunk, number of bytes and byte order of
    chunk sizes, whether chunks are padded to an even size."""

    first: int
    size_bytes: int
    order: Literal["little", "big"]
    even: bool


_CHUNKED = {
    b"RIFF": _Chunks(12, 4, "little", True),
    b"RF64": _Chunks(12, 4, "little", True),
    b"caff": _Chunks(8, 8, "big", False),
}


def _with_sizes(file: BinaryIO, size: int, head: bytes) -> _Bytes:
    """A WAV, RF64 or CAF file with a missing data size filled in. Raises SoundError if another
    WAV follows."""
    kind = _CHUNKED[head[:4]]
    claimed = 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and claimed < size:  # usually the end of the file
        for end in (claimed, claimed + claimed % 2):
            file.seek(end)
            if file.read(4) == b"RIFF":
                raise SoundError(_JOINED.format("WAV"))
    position, wide = kind.first, None
    for _ in range(_MOST_CHUNKS):
        file.seek(min(position, size))
        header = file.read(4 + kind.size_bytes)
        length, begin = int.from_bytes(header[4:], kind.order), position + len(header)
        if len(header) < 4 + kind.size_bytes:
            break
        if header[:4] == b"ds64":  # 64-bit sizes of file and data
            wide = position + 16
        if header[:4] == b"data":
            return _Bytes(file, *_written_size(file, kind, begin, length, size - begin, wide))
        position = begin + length + (length % 2 if kind.even else 0)
    return _Bytes(file)


def _written_size(
    file: BinaryIO, kind: _Chunks, begin: int, length: int, found: int, wide: int | None
) -> tuple[bytes, list[tuple[int, int]] | None]:
    """Arguments of `_Bytes`: if `length` is not a valid data size, a header with the actual
    size, `found` bytes; else none. The data begin at `begin`; their size is stored just before,
    or at `wide` in files that store it twice."""
    place, size_bytes = begin - kind.size_bytes, kind.size_bytes
    if wide is not None:
        file.seek(wide)
        length, place, size_bytes = int.from_bytes(file.read(8), "little"), wide, 8
    most = (1 << 8 * size_bytes) - 1
    overran = found > most and (found - length) % (most + 1) == 0  # size field overflowed
    if found <= 0 or not (length in (0, most) or overran) or (not length and _is_chunk(file, kind, begin, found)):
        return b"", None
    file.seek(0)
    head = bytearray(file.read(begin))
    if found <= most:
        head[place : place + size_bytes] = found.to_bytes(size_bytes, kind.order)
        return bytes(head), None
    sizes = b"".join(number.to_bytes(8, "little") for number in (found + begin, found, 0))
    wide_chunk = b"ds64" + (28).to_bytes(4, "little") + sizes + bytes(4)
    return b"RF64" + 4 * b"\xff" + b"WAVE" + wide_chunk + bytes(head[12:-4]) + 4 * b"\xff", [(begin, begin + found)]


def _is_chunk(file: BinaryIO, kind: _Chunks, begin: int, most: int) -> bool:
    """Whether a chunk header is at `begin`: four printable characters and a size that fits."""
    file.seek(begin)
    header = file.read(4 + kind.size_bytes)
    is_name = all(0x20 <= byte < 0x7F for byte in header[:4])
    return is_name and int.from_bytes(header[4:], kind.order) <= most - len(header)


def _flac_of_known_length(file: Any, reaches: Callable[[int], bool]) -> Any:
    """A FLAC file with its number of samples written into STREAMINFO, found by bisection.
    `reaches`: whether a seek to a sample succeeds."""
    below, above = -1, 1
    while reaches(above):
        below, above = above, above * 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if reaches(middle) else (below, middle)
    file.seek(0)
    head = bytearray(file.read(_LONGEST_GAP))
    total = head.find(b"fLaC") + 21  # of STREAMINFO: 4 bits, then 4 bytes
    if total < 21 or not 0 < above < 1 << 36 or not reaches(above - 1):
        raise SoundError("FLAC of unknown length, which cannot be found")
    head[total : total + 5] = ((head[total] & 0xF0) << 32 | above).to_bytes(5, "big")
    return _Bytes(file, bytes(head))


def _refuse_second_flac(file: Any) -> None:
    """Raises SoundError if another FLAC stream follows the first: a seek may land in either."""
    file.seek(0)
    beginnings, before = 0, b""
    while piece := file.read(_LONGEST_GAP):
        beginnings += sum((before + piece).count(b"fLaC" + kind + b"\0\0\x22") for kind in (b"\x00", b"\x80"))
        before = piece[-7:]
    if beginnings > 1:
        raise SoundError(_JOINED.format("FLAC"))


def _refuse_second_ogg(file: Any) -> None:
    """Raises SoundError if a second Ogg stream follows the first."""
    position, begun = 0, False
    while True:
        file.seek(position)
        page = file.read(27 + 255)
        if len(page) < 27 or page[:4] != b"OggS":
            return
        first = bool(page[5] & 2)  # beginning-of-stream flag
        if begun and first:
            raise SoundError(_JOINED.format("Ogg"))
        begun = begun or not first
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])


_MAY_BE_JOINED = {"FLAC": _refuse_second_flac, "OGG": _refuse_second_ogg}


class _Peek:
    """Random access to the bytes of a file through a small buffer."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size, self._begin, self._page = file, size, 0, b""

    def __call__(self, position: int, count: int) -> bytes:
        place = position - self._begin
        if place < 0 or place + count > len(self._page):
            self._file.seek(position)
            self._begin, self._page, place = position, self._file.read(max(count, 1 << 16)), 0
        return self._page[place : place + count]

    def find(self, byte: bytes, position: int, end: int) -> int:
        """Next offset of `byte` before `end`; −1 if there is none."""
        while position < min(end, self.size):
            piece = self(position, min(1 << 12, end - position))
            if (place := piece.find(byte)) >= 0:
                return position + place
            position += len(piece)
        return -1


class _MpegKind(NamedTuple):
    version: int  # header value: 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Samples per frame."""
        return 1152 if self.version == 3 else 576

    @property
    def side_bytes(self) -> int:
        """Bytes of frame header and side information."""
        return 4 + ((17 if self.mono else 32) if self.version == 3 else (9 if self.mono else 17))


class _MpegTag(NamedTuple):
    """The Xing/Info frame, which holds the number of frames."""

    frame: bytes
    says: int  # offset of the tag in the frame
    complete: bool  # whether it also holds a byte count that matches the file

    def counting(self, count: int, size: int) -> bytes:
        """The frame with correct counts; if its number of frames was wrong, the end padding is
        reset too."""
        says, flags, right = self.says, self.frame[self.says + 7], bytearray(self.frame)
        if int.from_bytes(right[says + 8 : says + 12], "big") != count:
            right[says + 8 : says + 12] = count.to_bytes(4, "big")
            lame = says + 12 + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
            if len(right) >= lame + 24:  # its delay and padding are 12 bits each
                right[lame + 22 : lame + 24] = bytes([right[lame + 22] & 0xF0, 0])
        if flags & 2 and len(right) >= says + 16:
            right[says + 12 : says + 16] = (size + len(right)).to_bytes(4, "big")
        return bytes(right)


class _MpegFrames:
    """Audio frames found: kinds, number, byte ranges in the file, largest size (bytes)."""

    def __init__(self) -> None:
        self.kinds: set[_MpegKind] = set()
        self.tag: _MpegTag | None = None
        self.count = self.largest = 0
        self.parts: list[tuple[int, int]] = []

    def add(self, kind: _MpegKind, begin: int, end: int) -> None:
        self.kinds.add(kind)
        self.count, self.largest = self.count + 1, max(self.largest, end - begin)
        if self.parts and self.parts[-1][1] == begin:
            begin = self.parts.pop()[0]
        self.parts.append((begin, end))


def _mpeg(file: BinaryIO, size: int) -> _Bytes | None:
    """MPEG layer III reduced to its audio frames, behind the Xing/Info frame with corrected
    counts if there is one. Decoders trust a frame count that is too small; without any, they
    estimate it from the file size and the first frames, and trailing zeros make that estimate
    large enough. None for other formats, or if nothing needs correction. Raises SoundError if
    different kinds of streams are joined in one file."""
    found = _mpeg_frames(_Peek(file, size))
    if not found.count or (found.tag and found.tag.complete):
        return None
    if len(found.kinds) > 1:
        raise SoundError("streams of several rates or numbers of channels joined in one MP3 file")
    (kind,) = found.kinds
    if found.tag:
        head = found.tag.counting(found.count, sum(end - begin for begin, end in found.parts))
        return _Bytes(file, head, found.parts)
    return _Bytes(file, b"", found.parts, zeros=found.count * found.largest, samples=found.count * kind.samples)


def _mpeg_frames(peek: _Peek) -> _MpegFrames:
    """All audio frames of a file; if the tag frame is complete, only the tag and the first one."""
    found, position, sound, sure = _MpegFrames(), 0, 0, False
    while position < peek.size:
        start = peek(position, 10)
        if start[:3] == b"ID3":
            position += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=False))
            sound = position if not found.count else sound
            continue
        frame = _mpeg_frame(start[:4])
        sure = frame is not None and (sure or _mpeg_goes_on(peek, position, 2))
        if frame is None or not sure:
            position = peek.find(b"\xff", position + 1, sound + (_LONGEST_JUNK if found.count else _LONGEST_GAP))
            if position < 0:
                break
            continue
        kind, size = frame
        what = _mpeg_tag(peek, position, kind, size)
        if what is None and position + size <= peek.size:
            found.add(kind, position, position + size)
            if found.tag and found.tag.complete:
                break
        elif isinstance(what, _MpegTag) and not found.count:
            found.tag = what
        position += size
        sound = position
    return found


def _mpeg_frame(header: bytes) -> tuple[_MpegKind, int] | None:
    """Kind and size (bytes) of the MPEG layer III frame with this header (ISO 11172-3 and
    13818-3); None if it is not one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bits, place = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or place == 3 or not 0 < bits < 15:
        return None
    rate = (44100, 48000, 32000)[place] >> {3: 0, 2: 1, 0: 2}[version]
    bit_rate, slots = (8000 * _BIT_RATES_1[bits], 144) if version == 3 else (8000 * _BIT_RATES_2[bits], 72)
    return _MpegKind(version, rate, header[3] >> 6 == 3), slots * bit_rate // rate + (header[2] >> 1 & 1)


def _mpeg_goes_on(peek: _Peek, at: int, times: int) -> bool:
    """Whether the frame at `at` is followed by `times` more frames of its kind, or by a tag or
    the end of the file."""
    kind, size = _mpeg_frame(peek(at, 4)) or (None, 0)
    following = peek(at + size, 4)
    if not size or len(following) < 4 or following[:3] in (b"ID3", b"TAG"):
        return bool(size)
    found = _mpeg_frame(following)
    return found is not None and found[0] == kind and (times == 1 or _mpeg_goes_on(peek, at + size, times - 1))


def _mpeg_tag(peek: _Peek, at: int, kind: _MpegKind, size: int) -> _MpegTag | bool | None:
    """The Xing/Info tag of the frame at `at`; True for other tag frames (VBRI, or without frame
    count); None for an audio frame."""
    says, frame = kind.side_bytes, peek(at, size)
    if frame[36:40] == b"VBRI":
        return True
    if frame[says : says + 4] not in (b"Xing", b"Info"):
        return None
    if len(frame) < says + 12 or not frame[says + 7] & 1:
        return True
    filled = at + int.from_bytes(frame[says + 12 : says + 16], "big") if frame[says + 7] & 2 else -1
    ends = (peek.size, peek.size - 128 if peek(max(0, peek.size - 128), 3) == b"TAG" else peek.size)
    return _MpegTag(frame, says, filled in ends or filled + size in ends)


class Recording:
    """An audio file as mono float32 at `target` Hz, readable in arbitrary segments."""

    def __init__(self, path: Path, target: int) -> None:
        """Raises RecordingError if there is no such file or it is not audio."""
        self._path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # pipes block and are not seekable
                raise RecordingError(f"{path}: not a regular file")
            self._bytes = path.open("rb")  # given a name, libsndfile also opens neighbouring files
        except (OSError, ValueError) as error:
            raise RecordingError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
        try:
            self._sound = Sound(self._bytes)
            self._native = self._sound.measure()
        except (SoundError, OSError) as error:
            self._bytes.close()
            raise RecordingError(f"{path}: {error}") from None
        self._resampler = Resampler(self._sound.rate, target)
        self.samples = self._resampler.length(self._native)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.close()
        self._bytes.close()

    def read(self, start: int, stop: int) -> Array:
        """Samples start … stop−1. Raises RecordingError if the file is damaged there."""
        low, high = self._resampler.needs(start, stop)
        first, last = max(0, low), min(self._native, high)
        try:
            piece = self._sound.read(first, last)
            if len(piece) < last - first:
                raise SoundError(ends_early(first + len(piece), self._native, self._sound.rate))
        except (SoundError, OSError) as error:
            raise RecordingError(f"{self._path}: {error}") from None
        return self._resampler(np.pad(piece, (first - low, high - last)), start, stop)


class Span(NamedTuple):
    """A chunk: samples start … stop−1 are encoded; of the resulting frames, first … last−1 are
    kept."""

    start: int
    stop: int
    first: int
    last: int


class Model:
    """An encoder exported by `exportw`."""

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        """Raises InputError if the file is missing or not such an encoder."""
        if not Path(path).exists():
            raise InputError(f"{path}: no such file; exportw writes it")
        try:
            import onnxruntime  # lazy: not needed to read audio
        except ImportError as error:
            raise InputError(f"needs the package {error.name}: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # no busy-waiting
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own exception types
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
        """Number of frames for `samples` samples at `sample_rate`."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)

    def __call__(self, waveform: Array, *, layer: int | None = None) -> Array:
        """[S] float32 in −1…1 at `sample_rate` to [T, D]; of layer `layer` (from 0, negative from
        the top) or the last."""
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
        """Yields the features chunk by chunk, in constant memory. Raises InputError;
        RecordingError if caused by the recording."""
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
        """Chunks of a recording. They overlap by a context on either side whose frames are
        discarded, so that every frame is produced once, at its own time. A single chunk if the
        recording is hardly longer than one."""
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


def main(
    arguments: list[str] | None = None, *, prog: str = "runinfer", version: str | None = None, threads: int = 0
) -> int:
    """Prints and, with --out, writes the features of recordings. Exit codes: 0 success, 2
    invalid input (one line each), 130 interrupted. `threads`: default of --threads; 0: chosen by
    onnxruntime."""
    for stream in (sys.stdout, sys.stderr):  # file names may not be encodable
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
    parser.add_argument("--threads", type=int, default=threads, help="threads of onnxruntime (default: all cores)")
    if version is not None:
        parser.add_argument("--version", action="version", version=f"{prog} {version}")
    options = parser.parse_intermixed_args(arguments)
    failed: list[RecordingError] = []
    try:
        try:
            _run(options, failed)
        finally:
            for failure in failed:
                print(f"{prog}: {_printable(failure)}", file=sys.stderr)
        return 2 if failed else 0
    except InputError as error:
        print(f"{prog}: {_printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, failed: list[RecordingError]) -> None:
    """Processes all recordings; the errors of single recordings are appended to `failed`."""
    settings = _settings(options.config, options.overrides)
    path = options.model or settings.get("onnx_path")
    given = options.audio or ([Path(settings["audio"])] if settings.get("audio") else [])
    if path is None:
        raise InputError("no model: give --model FILE.onnx, or a configuration with onnx_path")
    passed: Counter[str] = Counter()
    recordings = list(dict.fromkeys(found for place in given for found in _recordings(place, passed)))
    if passed:
        kinds = ", ".join(f"{count} {ending}" for ending, count in passed.most_common(8))
        print(f"skipped by file ending: {kinds}", file=sys.stderr)
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
    """Features of one recording: prints statistics, writes all features to `target`."""
    started, frames = time.perf_counter(), 0
    total, squares, low, high = 0.0, 0.0, np.inf, -np.inf
    first = last = np.zeros((0, model.width), np.float32)
    with Recording(path, model.sample_rate) as recording:
        seconds = recording.samples / model.sample_rate
        with _Output(target, (model.frames(recording.samples), model.width)) as output:
            for part in model.chunks(recording, str(path), layer=options.layer, chunk_seconds=options.chunk):
                values = part.astype(np.float64)
                frames, total, squares = frames + len(part), total + values.sum(), squares + np.square(values).sum()
                low, high = min(low, float(part.min())), max(high, float(part.max()))
                first = np.concatenate([first, part])[:_EDGE]
                last = np.concatenate([last, part])[-2 * _EDGE :]
                output.add(part)
    took, count = time.perf_counter() - started, frames * model.width
    mean = total / count
    deviation = np.sqrt(max(0.0, squares / count - mean**2))
    written = f", written to {_printable(target)}" if target is not None else ""
    rate = model.sample_rate / model.hop
    print(
        f"{_printable(path)}: features [{frames}, {model.width}] at {rate:g} frames per second "
        f"from {seconds:.2f} s of audio{written}"
    )
    print(_abbreviated(first, last, frames))
    print(f"    mean {mean:.4f}, deviation {deviation:.4f}, {low:.3f} to {high:.3f}")
    print(f"    {took:.2f} s, real-time factor {took / seconds:.3f}")


def _abbreviated(first: Array, last: Array, frames: int) -> str:
    """The features as numpy prints a large array, from their first three and last six rows."""
    rows = last
    if frames > len(last):
        left_out = np.zeros((1, last.shape[1]), last.dtype)  # numpy prints … instead
        rows = np.concatenate([first, left_out, last[-_EDGE:]])
    return np.array2string(rows, threshold=0, edgeitems=_EDGE, precision=4, suppress_small=True)


class _Output:
    """A .npy file written in parts and renamed when complete; does nothing without a target."""

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


def _recordings(place: Path, passed: Counter[str]) -> list[Path]:
    """The recordings of a folder, or the file itself; `passed` counts the endings of a folder's
    other files."""
    if not place.is_dir():
        return [place]
    files = sorted(path for path in place.rglob("*") if not path.name.startswith(".") and path.is_file())
    found = [path for path in files if path.suffix.lower() in _ENDINGS]
    passed.update(path.suffix.lower() or "no ending" for path in files if path.suffix.lower() not in _ENDINGS)
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
        first: dict[str, int] = {}  # for case-insensitive file systems
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


def _printable(item: object) -> str:
    """Escapes control characters, which file names may contain."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(item))


def _said(error: BaseException) -> str:
    """The error message of a library, without the repr of an in-memory file."""
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
