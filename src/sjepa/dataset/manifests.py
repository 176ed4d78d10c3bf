"""Manifests: JSONL with one path per line, and fairseq TSV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.dataset.listing import AudioRef, Listing

_LONGEST_SECONDS = 1e8  # three years


def list_jsonl(path: Path) -> Listing:
    """Entries with their labels; invalid lines are dropped and reported by line number."""
    listing = Listing()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            listing.refs.append(_jsonl_ref(fields))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            listing.dropped.append((f"line {number}", f"not a manifest entry ({error})"))
    return listing


def _lines(path: Path) -> list[str]:
    """Lines split at LF or CRLF only: file names may contain other Unicode line separators."""
    return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")


def _jsonl_ref(fields: dict[str, Any]) -> AudioRef:
    fields = dict(fields)
    names = [fields.pop(name) for name in ("path", "wav_path", "audio_filepath") if name in fields]
    if not names or not isinstance(names[0], str) or not names[0]:
        raise ValueError("no path, wav_path or audio_filepath")
    start, duration = fields.pop("offset", None), fields.pop("duration", None)
    return AudioRef(
        names[0],
        start_seconds=_seconds("offset", start) or 0.0,
        # without an offset the duration is that of the file and is ignored
        duration_seconds=_seconds("duration", duration) if start is not None else None,
        labels=fields,
    )


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = float(value)
    if not 0 <= seconds < _LONGEST_SECONDS:
        raise ValueError(f"{name} {value} is not a time in seconds")
    return seconds


def list_tsv(path: Path) -> Listing:
    """A fairseq manifest: the root folder on the first line, then `path<TAB>samples`."""
    root, *lines = _lines(path)
    if not root.strip() or not (path.parent / root.strip()).is_dir():
        raise UserError(f"{path}: line 1 is {root.strip()!r}, not the folder that the paths below it start from")
    names = [line.split("\t")[0].strip() for line in lines]
    return Listing([AudioRef(f"{root.strip()}/{name}") for name in names if name])
