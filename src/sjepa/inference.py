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
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
_CHUNK_SECONDS, _CONTEXT_SECONDS = 30.0, 2.0
_ZERO_CROSSINGS, _KAISER_BETA, _ROLLOFF = 48, 12.0, 0.96
_BLOCK = 1 << 14
_LARGEST_SAMPLE = 2.0**31  # integers of 32 bits that were written as floats are the largest seen
_EXACT_SEEK = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST"})
_PLAIN = frozenset(
    {"FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"}
)  # and PCM: as many bytes for any sample
_UNKNOWN_LENGTH = 1 << 62  # and more: what libsndfile says of a FLAC that does not say
_JOINED = "several {} streams joined in one file, of which the first alone would be read; split them"
_LONGEST_GAP = 1 << 20  # bytes between the parts of a file
_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000
_NOT_ITS_KIND = (
    1,
    4,
    18,
    161,
)  # libsndfile's words for: unknown, an encoding or a part of it that it lacks, FLAC in Ogg
_NOTHING = np.zeros(0, np.float32)
_MOST_CHUNKS = 64
_BIT_RATES_1 = (0, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)  # of MPEG-1 layer III, in 8 kbit/s
_BIT_RATES_2 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)  # of MPEG-2 and 2.5


class InputError(Exception):
    """What is wrong with what was given, in one line."""


class RecordingError(InputError):
    """What is wrong with one recording; others may be all right."""


def check_rate(rate: int) -> None:
    """Raises SoundError if no recording has such a rate (Hz)."""
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise SoundError(f"a rate of {rate} Hz, which no recording has")


def ends_early(found: int, claimed: int, rate: int) -> str:
    """What to say of a file that ends before its header says, lengths in samples."""
    return f"ends after {found / rate:.2f} s, where its header claims {claimed / rate:.2f} s"


class Resampler:
    """Windowed-sinc polyphase resampling of a recording at `rate` Hz to `target`, any part of it by itself."""

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


class SoundError(Exception):
    """Why a file, or a part of it, cannot be used."""


class UnknownFormatError(SoundError):
    """Not audio that libsndfile reads; another library may."""


class Downmix:
    """Averages channels, and remembers how loud they were: `peak` of the samples given, `channel_energy` (sum of squares
    over channels and time, divided by channels) and `mono_energy` of their mean."""

    def __init__(self) -> None:
        self.peak = self.channel_energy = self.mono_energy = 0.0

    def __call__(self, samples: Array) -> Array:
        """[S, C] float32 to [S]. Raises SoundError on values that no recording has."""
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
    """An audio file as libsndfile decodes it, channels averaged, float32 at its own `rate` (Hz). Headers that claim a wrong
    length are put right first, so that `samples` is the length as far as it can be told without decoding."""

    _file: Any = None

    def __init__(self, file: BinaryIO) -> None:
        """`file` stays the caller's to close. Raises SoundError."""
        self.downmix = Downmix()
        self._bytes = _put_right(file)
        self._open()
        if self._file.frames >= _UNKNOWN_LENGTH:
            self._bytes = _flac_of_known_length(self._bytes, self._reaches)
            self._open()
        self.rate, self.channels, self.samples = self._file.samplerate, self._file.channels, self._file.frames
        # libsndfile's seeks land on the exact sample; into other formats, what is wanted is reached by decoding
        is_plain = self._file.subtype.startswith("PCM") or self._file.subtype in _PLAIN
        self.exact = is_plain and self._file.format in _EXACT_SEEK and self._file.may_seek
        check_rate(self.rate)

    def close(self) -> None:
        """Leaves the bytes open."""
        if self._file is not None:
            self._file.close()

    def read(self, start: int, stop: int) -> Array:
        """Samples start … stop−1; fewer where the file ends. Raises SoundError if it is damaged there."""
        try:
            return self._read_there(start, stop) if self.exact else self._read_on(start, stop)
        except soundfile.LibsndfileError as error:
            raise SoundError(f"damaged ({_said(error)})") from None

    def measure(self) -> int:
        """The length in samples, as the decoder gives it where that may differ from the header. Raises SoundError."""
        if self._file.format in _MAY_BE_JOINED:
            _MAY_BE_JOINED[self._file.format](self._bytes)
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
        self._bytes.seek(0)
        try:
            self._file = _ReadOn(self._bytes)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            kind = UnknownFormatError if getattr(error, "code", 1) in _NOT_ITS_KIND else SoundError
            raise kind(f"not audio that libsndfile reads ({_said(error)})") from None
        self._position, self._kept = 0, _NOTHING  # next to be decoded, and the samples just before it

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
        """What follows up to sample `stop`, in blocks: no claim of a header takes memory."""
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
            found = len(self.read(self.samples - 1, self.samples)) or not self.samples
        except SoundError:
            found = False
        if not found:
            raise SoundError(
                f"damaged or cut off: there is no end at {self.samples / self.rate:.2f} s, where its header says"
            )

    def _reaches(self, position: int) -> bool:
        try:
            self._open()
            self._file.seek(position)
            return True
        except soundfile.LibsndfileError:
            return False


class _ReadOn(soundfile.SoundFile):  # type: ignore[misc]
    """Without the seek that the library makes after each read to where it is already: an MP3 decoder forgets by it what it
    needs of earlier frames."""

    @property
    def may_seek(self) -> bool:
        return bool(super().seekable())

    def seekable(self) -> bool:
        return False


class _Bytes(io.RawIOBase):
    """A file as libsndfile is to see it: its first bytes may be others, zeros may follow it, and no seek fails. `samples`:
    how many are to be read, whatever the library says."""

    def __init__(self, file: BinaryIO, head: bytes = b"", *, zeros: int = 0, samples: int | None = None) -> None:
        self.samples = samples
        self._file, self._head, self._position = file, head, 0
        self._end = file.seek(0, io.SEEK_END)
        self._size = self._end + zeros

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
        if self._position < len(self._head):
            piece = self._head[self._position : self._position + len(buffer)]
        elif self._position >= self._end:
            piece = bytes(max(0, min(len(buffer), self._size - self._position)))
        else:
            self._file.seek(self._position)
            piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _put_right(file: BinaryIO) -> _Bytes:
    """What is to be read of it, or instead of it where its header claims a length that is not its own."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if not size:
        raise SoundError("empty file")
    if head[:4] in _CHUNKED:
        return _Bytes(file, _with_sizes(file, size, head))
    if head[:4] == b".snd" and not any(head[8:12]):  # Sun's: all bits set means that it is not known
        file.seek(0)
        return _Bytes(file, file.read(8) + b"\xff" * 4)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        file.seek(0)
        return _mpeg(file.read()) or _Bytes(file)
    return _Bytes(file)


class _Chunks(NamedTuple):
    """How a kind of file divides: where its chunks begin, the bytes and the order of their sizes, whether they end even."""

    first: int
    size_bytes: int
    order: Literal["little", "big"]
    even: bool


_CHUNKED = {
    b"RIFF": _Chunks(12, 4, "little", True),
    b"RF64": _Chunks(12, 4, "little", True),
    b"caff": _Chunks(8, 8, "big", False),
}


def _with_sizes(file: BinaryIO, size: int, head: bytes) -> bytes:
    """The head of a WAV, an RF64 or a CAF whose size of samples was never written, with it; else nothing. Raises SoundError
    if another WAV follows."""
    kind = _CHUNKED[head[:4]]
    if head[:4] == b"RIFF":
        claimed = 8 + int.from_bytes(head[4:8], "little")
        for end in (claimed, claimed + claimed % 2):
            file.seek(end)
            if file.read(4) == b"RIFF":
                raise SoundError(_JOINED.format("WAV"))
    position, wide = kind.first, -1
    for _ in range(_MOST_CHUNKS):
        file.seek(min(position, size))
        header = file.read(4 + kind.size_bytes)
        length, begin = int.from_bytes(header[4:], kind.order), position + len(header)
        if len(header) < 4 + kind.size_bytes:
            break
        if header[:4] == b"ds64":  # sizes of 64 bits: of the file, of the samples
            wide = position + 16
        if header[:4] == b"data":
            return _written_size(file, kind, begin, length, size - begin, wide)
        position = begin + length + (length % 2 if kind.even else 0)
    return b""


def _written_size(file: BinaryIO, kind: _Chunks, begin: int, length: int, there: int, wide: int) -> bytes:
    """The head up to the size of the samples, which begin at `begin`, if none is written: before them, or at `wide` unless
    that is negative. Without samples, another chunk may follow at once."""
    place, size_bytes = begin - kind.size_bytes, kind.size_bytes
    if wide >= 0:
        file.seek(wide)
        length, place, size_bytes = int.from_bytes(file.read(8), "little"), wide, 8
    file.seek(begin)
    following = file.read(4 + kind.size_bytes)
    is_chunk = following[:4].isalnum() and int.from_bytes(following[4:], kind.order) <= there - len(following)
    if there <= 0 or (is_chunk and not length) or 0 < length < (1 << 64) - 1:
        return b""
    file.seek(0)
    head = bytearray(file.read(begin))
    head[place : place + size_bytes] = min(there, (1 << 8 * size_bytes) - 1).to_bytes(size_bytes, kind.order)
    return bytes(head)


def _flac_of_known_length(file: Any, reaches: Callable[[int], bool]) -> Any:
    """A FLAC file that says how many samples it has. `reaches`: whether one may seek to a sample."""
    below, above = -1, 1
    while reaches(above):
        below, above = above, above * 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if reaches(middle) else (below, middle)
    file.seek(0)
    head = bytearray(file.read(_LONGEST_GAP))
    total = head.find(b"fLaC") + 21  # of STREAMINFO: 4 bits, then 4 bytes
    if total < 21 or above >= 1 << 36:
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
    """Raises SoundError if one Ogg stream ends and another begins."""
    position, begun = 0, False
    while True:
        file.seek(position)
        page = file.read(27 + 255)
        if len(page) < 27 or page[:4] != b"OggS":
            return
        first = bool(page[5] & 2)  # of its stream
        if begun and first:
            raise SoundError(_JOINED.format("Ogg"))
        begun = begun or not first
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])


_MAY_BE_JOINED = {"FLAC": _refuse_second_flac, "OGG": _refuse_second_ogg}


def _mpeg(data: bytes) -> _Bytes | None:
    """MPEG layer III as its frames alone, behind the one that gives their number if the file has such a one. A decoder
    believes a number that was written for fewer; without any it guesses from the file's size and its first frames, and zeros
    after them make that too many. None if it is something else. Raises SoundError for streams of several kinds in one file."""
    frames, tag = _mpeg_frames(data)
    if not frames:
        return None
    kinds = {kind for kind, _, _ in frames}
    if len(kinds) > 1:
        raise SoundError("streams of several rates or numbers of channels joined in one MP3 file")
    (kind,) = kinds
    body = b"".join(data[begin:end] for _, begin, end in frames)
    if tag:
        return _Bytes(io.BytesIO(_mpeg_tag(tag, kind.side_bytes, len(frames), len(body)) + body))
    largest = max(end - begin for _, begin, end in frames)
    return _Bytes(io.BytesIO(body), zeros=len(frames) * largest, samples=len(frames) * kind.samples)


def _mpeg_frames(data: bytes) -> tuple[list[tuple[_MpegKind, int, int]], bytes]:
    """(kind, first byte, end) of every frame with sound, and the frame before them that says how many there are."""
    frames: list[tuple[_MpegKind, int, int]] = []
    tag, position, sure = b"", 0, False
    while position < len(data):
        if data[position : position + 3] == b"ID3":
            sizes = data[position + 6 : position + 10]
            position += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=False))
            continue
        found = _mpeg_frame(data, position)
        sure = found is not None and (sure or _mpeg_goes_on(data, position, 2))
        if found is None or not sure:
            gap = min(len(data), (frames[-1][2] if frames else position) + (_LONGEST_GAP if frames else 1 << 16))
            position = data.find(b"\xff", position + 1, gap)
            if position < 0:
                break
            continue
        kind, size = found
        says = position + kind.side_bytes
        if data[says : says + 4] in (b"Xing", b"Info"):
            is_first = not frames and data[says + 7] & 1 if says + 8 <= len(data) else False
            tag = data[position : position + size] if is_first else tag
        elif data[position + 36 : position + 40] == b"VBRI":  # another such frame, which says nothing more
            pass
        elif position + size <= len(data):
            frames.append((kind, position, position + size))
        position += size
    return frames, tag


class _MpegKind(NamedTuple):
    version: int  # as the header has it: 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Of a frame."""
        return 1152 if self.version == 3 else 576

    @property
    def side_bytes(self) -> int:
        """Bytes of a frame before its sound."""
        return 4 + ((17 if self.mono else 32) if self.version == 3 else (9 if self.mono else 17))


def _mpeg_frame(data: bytes, at: int) -> tuple[_MpegKind, int] | None:
    """Kind and bytes of the frame of MPEG layer III that begins there (ISO 11172-3 and 13818-3); None if none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, bits, place = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or place == 3 or not 0 < bits < 15:
        return None
    rate = (44100, 48000, 32000)[place] >> {3: 0, 2: 1, 0: 2}[version]
    bit_rate, slots = (8000 * _BIT_RATES_1[bits], 144) if version == 3 else (8000 * _BIT_RATES_2[bits], 72)
    return _MpegKind(version, rate, data[at + 3] >> 6 == 3), slots * bit_rate // rate + (data[at + 2] >> 1 & 1)


def _mpeg_goes_on(data: bytes, at: int, times: int) -> bool:
    """Whether more frames of the same kind follow the one that begins there, as many as the file has room for."""
    kind, size = _mpeg_frame(data, at) or (None, 0)
    following = at + size
    if not size or following + 4 > len(data) or data[following : following + 3] in (b"ID3", b"TAG"):
        return bool(size)
    found = _mpeg_frame(data, following)
    return found is not None and found[0] == kind and (times == 1 or _mpeg_goes_on(data, following, times - 1))


def _mpeg_tag(tag: bytes, says: int, count: int, size: int) -> bytes:
    """The frame that says how many others there are, from byte `says` on: as it is if it is right, else with the right
    number and without the padding at the end that it knows of."""
    flags = tag[says + 7]
    right = bytearray(tag)
    if int.from_bytes(tag[says + 8 : says + 12], "big") != count:
        right[says + 8 : says + 12] = count.to_bytes(4, "big")
        lame = says + 12 + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
        if len(right) >= lame + 24:  # its delay and padding are 12 bits each
            right[lame + 22 : lame + 24] = bytes([right[lame + 22] & 0xF0, 0])
    if flags & 2:
        right[says + 12 : says + 16] = (size + len(tag)).to_bytes(4, "big")
    return bytes(right)


class Recording:
    """An audio file as mono float32 at `target` Hz, read in any pieces."""

    def __init__(self, path: Path, target: int) -> None:
        """Raises RecordingError if there is no such file or it is not audio."""
        self._path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, and nothing can be sought in it
                raise RecordingError(f"{path}: not a regular file")
            self._bytes = path.open("rb")  # libsndfile looks at a file's neighbours if it knows its name
        except (OSError, ValueError) as error:
            raise RecordingError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
        try:
            self._sound = Sound(self._bytes)
            self._native = self._sound.measure()
        except SoundError as error:
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
        except SoundError as error:
            raise RecordingError(f"{self._path}: {error}") from None
        return self._resampler(np.pad(piece, (first - low, high - last)), start, stop)


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
        try:
            import onnxruntime  # here, so that what reads audio needs no runtime
        except ImportError as error:
            raise InputError(f"needs the package {error.name}: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # on cores that others may want
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


def main(
    arguments: list[str] | None = None, *, prog: str = "runinfer", version: str | None = None, threads: int = 0
) -> int:
    """Prints, and on request writes, the features of recordings. 0 done, 2 mistakes, a line each, 130 interrupted.
    `threads`: of onnxruntime, where --threads does not say; 0: as many as it chooses."""
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
    passed: Counter[str] = Counter()
    recordings = list(dict.fromkeys(found for place in given for found in _recordings(place, passed)))
    if passed:
        kinds = ", ".join(f"{count} {ending}" for ending, count in passed.most_common(8))
        print(f"passed over by their endings: {kinds}", file=sys.stderr)
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


def _recordings(place: Path, passed: Counter[str]) -> list[Path]:
    """The recordings of a folder, or the file itself; `passed` counts the endings of a folder's other files."""
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
