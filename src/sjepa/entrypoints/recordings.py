"""The recordings that a command is given: files, folders, archives, manifests. S samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sjepa.core.errors import UserError
from sjepa.dataset.audio import Waveform
from sjepa.dataset.containers import Containers, Place, kind_of, list_source
from sjepa.dataset.listing import Source

_BLOCK = 1 << 22  # samples that are decoded at once


class Recording(NamedTuple):
    """`path`: where it is, absolute; for archives the archive's path and the name inside. `start`
    and `duration` (None: to the end) in seconds, for segments of manifests."""

    path: Path
    open: Callable[[], BinaryIO]
    start: float = 0.0
    duration: float | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from others, as plain values."""
        segment = {} if self.duration is None else {"start": self.start, "segment": self.duration}
        return {"path": str(self.path), **segment}


class Found(NamedTuple):
    """`dropped`: names and reasons of what cannot be used."""

    recordings: list[Recording]
    dropped: list[tuple[str, str]]


def find_recordings(inputs: Sequence[Path], indexes: Path) -> Found:
    """Audio files, and those of folders, archives and manifests, each once. `indexes`: folder for
    those of compressed archives. Raises UserError."""
    containers = Containers()
    found: list[Recording] = []
    dropped: list[tuple[str, str]] = []
    for number, given in enumerate(inputs):
        if not given.exists():
            raise UserError(f"{given}: no such file")
        path = given.resolve()
        kind = "folder" if path.is_dir() else kind_of(path)
        if kind is None or kind == "h5":
            found.append(Recording(path, partial(_opened, path)))
            continue
        if not os.access(path, os.R_OK | (os.X_OK if kind == "folder" else 0)):
            raise UserError(f"{given}: cannot be read (permission denied)")
        source, index = Source(path, kind), indexes / f"{number}.index"
        listing = list_source(source, index)
        dropped += [(f"{given}: {name}", reason) for name, reason in listing.dropped]
        if not listing.refs and not listing.dropped:
            raise UserError(f"{given}: no audio file in it")
        for ref in listing.refs:
            place = Place(ref.name, ref.offset, ref.size, index if index.exists() else None)
            parent = path.parent if kind in ("jsonl", "tsv") else path
            opened = partial(containers.open, source, place)
            found.append(Recording(parent / ref.name, opened, ref.start_seconds, ref.duration_seconds))
    once = {(str(own.path), own.start, own.duration): own for own in found}
    return Found(list(once.values()), dropped)


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


class Blocks:
    """Samples from `first` to `end` of a recording, decoded in blocks of some minutes: compressed
    files are decoded from their beginning for every block."""

    def __init__(self, decode: Callable[[int, int], Waveform], first: int, end: int) -> None:
        self._decode, self._first, self._end = decode, first, end
        self._start, self._block = 0, np.zeros(0, np.float32)

    def __call__(self, start: int, stop: int) -> Waveform:
        """From `first` + `start` to `first` + `stop`."""
        start, stop = self._first + start, self._first + stop
        if start < self._start or stop > self._start + len(self._block):
            self._start = start
            self._block = self._decode(start, min(self._end, max(stop, start + _BLOCK)))
        return self._block[start - self._start : stop - self._start]
