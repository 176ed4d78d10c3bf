"""Fingerprints of files from size and modification time, to detect changed sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

_FILES_AT_ONCE, _ASKED_AT_ONCE = 512, 16


def of_file(path: Path) -> dict[str, Any]:
    """Size and modification time (ns)."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "files": 1}


def of_files(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Fingerprint of files, named relative to `folder` or absolute: total size, latest modification
    time, number of files and a digest of all."""
    parts = [names[start : start + _FILES_AT_ONCE] for start in range(0, len(names), _FILES_AT_ONCE)]
    digest = hashlib.blake2b(digest_size=16)
    size = modified = count = 0
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # stat is slow on network file systems
        for part, states in zip(parts, pool.map(partial(_sizes_and_times, str(folder)), parts), strict=True):
            for name, state in zip(part, states, strict=True):
                if state is not None:
                    size, modified, count = size + state[0], max(modified, state[1]), count + 1
                    digest.update(f"{len(name)} {name} {state[0]} {state[1]};".encode("utf-8", "surrogateescape"))
    return {"bytes": size, "modified_ns": modified, "files": count, "digest": digest.hexdigest()}


def _sizes_and_times(folder: str, names: list[str]) -> list[tuple[int, int] | None]:
    """(size, modification time) per file, None if missing; the scan reports those."""
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))
            found.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            found.append(None)
    return found
