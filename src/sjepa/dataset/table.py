"""Columnar table of the clips of one source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sjepa.dataset.listing import Source

ScanDepth = bool | Literal["full", "header"]


@dataclass(frozen=True)
class StoredAudio:
    """HDF5 only: sample type, checksums and byte offsets of augmented copies (−1: none)."""

    sample_type: np.dtype[Any]
    crc32_N: NDArray[np.uint32]
    copy_offset_CN: NDArray[np.int64]
    copy_crc32_CN: NDArray[np.uint32]
    # checksum verified in this process: clips (row 0) and copies (from row 1)
    intact_VN: NDArray[np.bool_]


@dataclass
class ClipTable:
    """The clips of one source, one column per property. `samples` and `rate` are those of the file;
    `first`: first sample of a segment; `offset`/`size`: byte range in a container that is read
    directly, else −1. `stored`: for decoded samples (HDF5). `remarks`: warnings for the user."""

    source: Source
    names: list[str]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    first: NDArray[np.int64]
    samples: NDArray[np.int64]
    rate: NDArray[np.int64]
    channels: NDArray[np.int64]
    labels: dict[str, list[Any]] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    gzip_index: Path | None = None
    stored: StoredAudio | None = None
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)
