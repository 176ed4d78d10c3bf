"""Per-thread cache of open files, and file objects for byte ranges of a file."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_READ_WHOLE_BYTES = 8 << 20  # larger clips are read on demand with seeks
_OPEN_HANDLES = 64


class Handles:
    """LRU cache of open files. Per thread, since a file has a single position: other threads,
    pickled copies and forked processes start with an empty cache."""

    def __init__(self) -> None:
        self._own = _Own()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def get(self, path: Path, kind: str, opened: Callable[[], Any]) -> Any:
        """The cached handle of `path`, created by `opened` on first use."""
        # after a fork, file positions are shared with the parent
        if self._own.process != os.getpid():
            self._own = _Own()
        handles, key = self._own.handles, (str(path), kind)
        if key not in handles:
            handles[key] = opened()
            if len(handles) > _OPEN_HANDLES:
                handles.popitem(last=False)[1].close()
        handles.move_to_end(key)
        return handles[key]

    def close(self) -> None:
        """Closes the file handles of this thread."""
        while self._own.handles:
            self._own.handles.popitem()[1].close()


class _Own(threading.local):
    """Thread-local handles."""

    def __init__(self) -> None:
        self.handles: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self.process = os.getpid()


def part_of(raw: io.FileIO, offset: int, size: int) -> BinaryIO:
    """File object for `size` bytes of an open file from `offset` on."""
    if size > _READ_WHOLE_BYTES:
        return io.BufferedReader(_Slice(raw, offset, size), buffer_size=1 << 16)
    raw.seek(offset)
    return io.BytesIO(raw.read(size))


class _Slice(io.RawIOBase):
    """A byte range of an open file as a file object with its own position."""

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
