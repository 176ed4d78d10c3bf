"""The clips of one source, column by column."""

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
    """What an HDF5 file has beyond an archive: the type of its samples, checksums, and copies (byte position −1: none)."""

    sample_type: np.dtype[Any]
    crc32_N: NDArray[np.uint32]
    copy_offset_CN: NDArray[np.int64]
    copy_crc32_CN: NDArray[np.uint32]
    intact_VN: NDArray[np.bool_]  # which clips and (from row 1 on) copies this process has compared


@dataclass
class ClipTable:
    """The clips of one source, one column per property. `samples` and `rate` are the file's own; `first` is the
    sample at which a segment begins; `offset`/`size` are byte positions in a directly readable container, else −1.
    `stored`: for samples that need no decoding. `remarks` are for the user."""

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
