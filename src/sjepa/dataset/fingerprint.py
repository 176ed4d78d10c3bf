"""Whether a source is what it was: names, sizes and times of its files."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sjepa.dataset.hub import hub_rows
from sjepa.dataset.sources import Source, audio_files, list_source

_FILES_AT_ONCE, _ASKED_AT_ONCE = 512, 16


def fingerprint(source: Source) -> dict[str, Any]:
    """Sizes, modification times (ns), file count and a digest of names: another one means that the source changed. Of a
    manifest also its files count."""
    if source.hub is not None:
        return hub_rows(source.hub).fingerprint
    if source.kind == "folder":
        return _states(source.path, [os.path.relpath(path, source.path) for path in audio_files(source.path)])
    status = source.path.stat()
    own = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "files": 1}
    if source.kind not in ("jsonl", "tsv"):
        return own
    return {**own, "listed": _states(source.path.parent, sorted({ref.name for ref in list_source(source).refs}))}


def _states(folder: Path, names: list[str]) -> dict[str, Any]:
    """Of files by their names, which start from `folder` or are absolute."""
    parts = [names[start : start + _FILES_AT_ONCE] for start in range(0, len(names), _FILES_AT_ONCE)]
    digest = hashlib.blake2b(digest_size=16)
    size = modified = count = 0
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # a network file system takes its time for each
        for part, states in zip(parts, pool.map(partial(_sizes_and_times, str(folder)), parts), strict=True):
            for name, state in zip(part, states, strict=True):
                if state is not None:
                    size, modified, count = size + state[0], max(modified, state[1]), count + 1
                    digest.update(f"{len(name)} {name} {state[0]} {state[1]};".encode("utf-8", "surrogateescape"))
    return {"bytes": size, "modified_ns": modified, "files": count, "digest": digest.hexdigest()}


def _sizes_and_times(folder: str, names: list[str]) -> list[tuple[int, int] | None]:
    """None for what is no file: the scan says so."""
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))
            found.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            found.append(None)
    return found
