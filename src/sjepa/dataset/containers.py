"""The bytes of one clip, wherever it lies: opened lazily in each process, never unpacked to disk."""

from __future__ import annotations

import io
import os
import stat
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from sjepa.dataset.audio import DecodeError
from sjepa.dataset.gzip_access import BlockReader
from sjepa.dataset.hub import hub_rows
from sjepa.dataset.sources import Source

_READ_WHOLE_BYTES = 8 << 20  # smaller clips are read in one go; larger ones stay on disk and are sought in
_OPEN_HANDLES = 64


class Containers:
    """Opens clips of any source. Handles belong to the thread that opened them, since each has one position: other threads,
    copies and forks start empty."""

    def __init__(self) -> None:
        self._own = _Handles()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def open(self, source: Source, name: str, offset: int, size: int, *, index: Path | None = None) -> BinaryIO:
        """A seekable file of one clip's bytes. Raises DecodeError if they cannot be had."""
        path, kind = source.path, source.kind
        try:
            if kind in ("folder", "jsonl", "tsv"):
                return _open_file((path if kind == "folder" else path.parent) / name)
            if source.hub is not None:
                return hub_rows(source.hub).audio(int(name))
            if kind == "targz":
                return io.BytesIO(self._handle(path, kind, index).read_range(offset, size))
            if offset >= 0:  # stored as it is
                return _slice(self._handle(path, "raw", None), offset, size)
            return io.BytesIO(self._handle(path, kind, None).read(name))
        except FileNotFoundError:
            raise DecodeError("no such file") from None
        except DecodeError:
            raise
        except Exception as error:  # damaged archives make their libraries raise anything
            raise DecodeError(f"unreadable in its container ({error or type(error).__name__})") from None

    def close(self) -> None:
        """Closes what this thread opened."""
        while self._own.handles:
            self._own.handles.popitem()[1].close()

    def _handle(self, path: Path, kind: str, index: Path | None) -> Any:
        if self._own.process != os.getpid():  # after a fork: the parent's file positions are not ours to move
            self._own = _Handles()
        handles, key = self._own.handles, (str(path), kind)
        if key not in handles:
            if kind == "targz":
                handles[key] = BlockReader(path, index)
            else:
                handles[key] = zipfile.ZipFile(path) if kind == "zip" else path.open("rb", buffering=0)
            if len(handles) > _OPEN_HANDLES:
                handles.popitem(last=False)[1].close()
        handles.move_to_end(key)
        return handles[key]


class _Handles(threading.local):
    """Open files, the least recently used first; each thread sees its own."""

    def __init__(self) -> None:
        self.handles: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self.process = os.getpid()


def _open_file(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
        raise DecodeError("not a regular file")
    return path.open("rb")


def _slice(raw: io.FileIO, offset: int, size: int) -> BinaryIO:
    if size > _READ_WHOLE_BYTES:
        return io.BufferedReader(_Slice(raw, offset, size), buffer_size=1 << 16)
    raw.seek(offset)
    return io.BytesIO(raw.read(size))


class _Slice(io.RawIOBase):
    """Part of an open file as a file of its own, with its own position."""

    def __init__(self, raw: io.FileIO, offset: int, size: int) -> None:
        self._raw, self._offset, self._size, self._position = raw, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._raw.seek(self._offset + self._position)
        wanted = min(len(view), max(0, self._size - self._position))
        count = self._raw.readinto(view[:wanted]) or 0
        self._position += count
        return count
