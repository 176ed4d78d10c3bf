"""Manifests: JSONL with one path per line (NeMo's too) or one lhotse cut, fairseq TSV, Kaldi's
wav.scp."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.dataset.listing import AudioRef, Listing

_PATHS = ("path", "wav_path", "audio_filepath")
_LONGEST_SECONDS = 1e8  # three years


def list_jsonl(path: Path) -> Listing:
    """Entries with their labels; invalid lines are dropped and reported by line number."""
    listing = Listing()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            is_plain = any(name in fields for name in _PATHS)
            listing.refs.append(_jsonl_ref(fields) if is_plain else _cut_ref(fields))
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
            listing.dropped.append((f"line {number}", f"not a manifest entry ({error})"))
    return _found(listing, path.parent)


def _found(listing: Listing, folder: Path) -> Listing:
    """Paths relative to the list's folder; to the working directory, as other toolkits write them,
    if the first one is there and not beside the list."""
    first = next((Path(ref.name) for ref in listing.refs if not Path(ref.name).is_absolute()), None)
    if first is None or (folder / first).exists() or not first.exists():
        return listing
    here = Path.cwd()
    refs = [replace(ref, name=str(here / ref.name)) for ref in listing.refs]
    return replace(listing, refs=refs)


def _lines(path: Path) -> list[str]:
    """Lines split at LF or CRLF only: file names may contain other Unicode line separators."""
    content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    return content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")


def _jsonl_ref(fields: dict[str, Any]) -> AudioRef:
    fields = dict(fields)
    names = [fields.pop(name) for name in _PATHS if name in fields]
    if not isinstance(names[0], str) or not names[0]:
        raise ValueError(f"no {', '.join(_PATHS)}")
    start, duration = fields.pop("offset", None), fields.pop("duration", None)
    return AudioRef(
        names[0],
        start_seconds=_seconds("offset", start) or 0.0,
        # without an offset the duration is that of the file and is ignored
        duration_seconds=_seconds("duration", duration) if start is not None else None,
        labels=fields,
    )


def _cut_ref(fields: dict[str, Any]) -> AudioRef:
    """A MonoCut of lhotse, with speaker and text of its supervisions; or a recording of its own."""
    recording = fields.get("recording", fields)
    if not isinstance(recording, dict) or "sources" not in recording:
        raise ValueError(f"no {', '.join(_PATHS)}")
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        raise ValueError("not a cut of one audio file")
    if any("name" not in change or change["name"] != "Resample" for change in recording.get("transforms") or []):
        raise ValueError("a cut with transforms")
    if isinstance(fields.get("channel"), int) and len(sources[0].get("channels") or [0]) > 1:
        raise ValueError("one channel of several; write it to a file of its own")
    labels: dict[str, Any] = {"id": fields.get("id")}
    for name in ("speaker", "text", "language", "gender"):
        found = [own[name] for own in fields.get("supervisions") or [] if own.get(name) is not None]
        if found:
            labels[name] = " ".join(map(str, found)) if name == "text" else found[0]
    start, duration = (_seconds(name, fields.get(name)) for name in ("start", "duration"))
    whole = recording is fields or (not start and duration == recording.get("duration"))
    if whole:
        return AudioRef(sources[0]["source"], labels=labels)
    return AudioRef(sources[0]["source"], start_seconds=start or 0.0, duration_seconds=duration, labels=labels)


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


def list_scp(path: Path) -> Listing:
    """Kaldi's wav.scp, with `segments`, `utt2spk` (label speaker) and `text` beside it if they are
    there. Commands in place of files are not run, and archives not read: such lines are dropped."""
    listing = Listing()
    files: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for name, place in _pairs(path):
        if place.endswith("|") or place.startswith("|"):
            unusable[name] = "a command, not a file; decode it into a file first"
        elif not place or ".ark:" in place:
            unusable[name] = "not an audio file" if place else "no path"
        else:
            files[name] = place
    labels = {label: dict(_pairs(path.parent / file)) for label, file in (("speaker", "utt2spk"), ("text", "text"))}
    segments, whole = path.parent / "segments", ((name, name, 0.0, None) for name in [*unusable, *files])
    for name, recording, start, end in _segments(segments) if segments.is_file() else whole:
        own = {label: known[name] for label, known in labels.items() if name in known}
        if recording in unusable:
            listing.dropped.append((name, unusable[recording]))
        elif recording not in files:
            listing.dropped.append((name, f"segments: {recording} is not in {path.name}"))
        elif end is not None and end <= start:
            listing.dropped.append((name, f"segments: ends at {end:g} s, before its start"))
        else:
            length = None if end is None else end - start
            listing.refs.append(AudioRef(files[recording], start_seconds=start, duration_seconds=length, labels=own))
    return _found(listing, path.parent)


def _pairs(path: Path) -> list[tuple[str, str]]:
    """The first word of every line and the rest; empty without the file."""
    if not path.is_file():
        return []
    lines = [line.strip().split(None, 1) for line in _lines(path) if line.strip()]
    return [(line[0], line[1] if len(line) > 1 else "") for line in lines]


def _segments(path: Path) -> Iterator[tuple[str, str, float, float | None]]:
    """Utterance, recording, start, end. Raises UserError."""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            name, recording, start, end, *channel = line.split()
            if channel not in ([], ["0"]):
                raise UserError(f"{path}: line {number}: channel {' '.join(channel)}; write it to a file of its own")
            first, last = _seconds("start", start), _seconds("end", end) if float(end) >= 0 else None  # -1: the end
            assert first is not None
            yield name, recording, first, last
        except ValueError:
            raise UserError(f"{path}: line {number} is not: utterance recording start end, in seconds") from None
