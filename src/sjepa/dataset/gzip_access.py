"""Random access in .tar.gz: an index of restart points and a cache of decompressed blocks.

Decompression starts at a restart point and so costs at least the surrounding megabytes. The reader
therefore decompresses whole blocks and serves clips from memory. `order.py` orders clips so that
the blocks in use at any time fit in that cache.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rapidgzip

from sjepa.core.files import atomic_path
from sjepa.core.threads import usable_cores

BLOCK_BYTES = 4 << 20
BLOCKS_IN_USE = 12  # blocks that an epoch's order draws from at a time
_BLOCKS_KEPT = 2 * BLOCKS_IN_USE  # a clip may extend into the next block


class GzipIndex:
    """The index of one compressed file, stored on disk beside the scan cache."""

    @staticmethod
    @contextlib.contextmanager
    def build(path: Path, index: Path | None) -> Iterator[Any]:
        """The decompressed stream of `path`; after a complete read, writes the index to `index`."""
        stream = rapidgzip.open(str(path), parallelization=usable_cores())
        try:
            yield stream
            if index is not None:
                with atomic_path(index) as temporary:
                    stream.export_index(str(temporary))
        finally:
            stream.close()


class BlockReader:
    """Byte ranges of the decompressed stream, with an LRU cache of blocks."""

    def __init__(self, path: Path, index: Path | None) -> None:
        self._stream = rapidgzip.open(str(path), parallelization=1)
        if index is not None and index.exists():
            try:
                self._stream.import_index(str(index))
            except Exception:  # corrupt index: reading without it is slower but correct
                self._stream.close()
                self._stream = rapidgzip.open(str(path), parallelization=1)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read_range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the stream's end."""
        first, last = offset // BLOCK_BYTES, (offset + max(size, 1) - 1) // BLOCK_BYTES
        joined = b"".join(self._block(number) for number in range(first, last + 1))
        begin = offset - first * BLOCK_BYTES
        return joined[begin : begin + size]

    def close(self) -> None:
        self._blocks.clear()
        self._stream.close()

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
        else:
            self._stream.seek(number * BLOCK_BYTES)
            self._blocks[number] = self._stream.read(BLOCK_BYTES)
            while len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]
