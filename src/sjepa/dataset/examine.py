"""Validation of one clip during the scan: segment bounds, decodability and signal problems."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from sjepa.core.files import printable
from sjepa.dataset.audio import AudioInfo, DecodeError, verify
from sjepa.inference import Downmix

_END_SECONDS = 0.5
_FULL_SCALE = 8.0  # float recordings may exceed 1 slightly
_CANCELS = 1e-4  # mono energy over mean channel energy (−40 dB): channels cancel
_LOUD = "values far above full scale, which is 1 (integers written as floats? divide them)"
_OPPOSITE = "channels that cancel each other when they are averaged (of opposite polarity? invert one)"


class Examined(NamedTuple):
    """First sample and length at the file's rate (Hz), channels, and a warning about the signal."""

    first: int
    samples: int
    rate: int
    channels: int
    remark: str | None


class Remarks:
    """Collects warnings about usable clips, one line per kind of warning."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def add(self, name: str, remark: str | None) -> None:
        if remark is not None:
            self._count[remark] += 1
            self._example.setdefault(remark, printable(name))

    def lines(self, clips: int) -> list[str]:
        """Summary lines. `clips`: total number of clips."""
        return [
            f"{remark}: {count:,} of {clips:,} clips, first {self._example[remark]}"
            for remark, count in self._count.items()
        ]


def examine(file: Any, info: AudioInfo, start_seconds: float, duration_seconds: float | None, check: str) -> Examined:
    """Validates the segment of a file from `start_seconds` on. `check`: "header" decodes nothing,
    "ends" its start and end, "full" all of it (nothing if `info` was measured by decoding the whole
    file). Raises DecodeError."""
    first, samples = _segment(info, start_seconds, duration_seconds)
    levels, end = info.levels, first + samples
    if levels is None and check != "header":
        part = samples if check == "full" else int(_END_SECONDS * info.rate)
        parts = [(first, min(end, first + part)), (max(first + part, end - part), end)]
        levels = verify(file, info.samples, [(start, stop) for start, stop in parts if start < stop])
    return Examined(first, samples, info.rate, info.channels, None if levels is None else _remark(levels))


def _segment(info: AudioInfo, start_seconds: float, duration_seconds: float | None) -> tuple[int, int]:
    first = round(start_seconds * info.rate)
    if first >= info.samples:
        raise DecodeError(f"segment starts at {start_seconds:g} s, after the end at {info.seconds:.3f} s")
    available = info.samples - first
    if duration_seconds is None:
        return first, available
    wanted = round(duration_seconds * info.rate)
    if wanted < 1:
        raise DecodeError("empty segment")
    return first, min(wanted, available)


def _remark(levels: Downmix) -> str | None:
    if levels.peak > _FULL_SCALE:
        return _LOUD
    return _OPPOSITE if levels.mono_energy < _CANCELS * levels.channel_energy else None
