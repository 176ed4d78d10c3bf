"""The scan: inspects every clip of a source once and caches the result beside the data.

The cache is columnar JSON, which loads in seconds for a million clips.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sjepa.core.files import atomic_path, is_writable_folder
from sjepa.core.progress import Progress, silent
from sjepa.core.threads import usable_cores
from sjepa.dataset.audio import AudioInfo, DecodeError, probe
from sjepa.dataset.containers import CONTAINERS, Containers, Place, list_source
from sjepa.dataset.examine import Examined, Remarks, examine
from sjepa.dataset.hdf5 import read_table
from sjepa.dataset.listing import AudioRef, Listing, Source
from sjepa.dataset.sources import stem_of
from sjepa.dataset.table import ClipTable, ScanDepth

_FORMAT = 2
_CHUNK_CLIPS = 64
_PARALLEL_FROM_CLIPS = 512  # below this, starting processes takes longer
_COLUMNS = ("offset", "size", "first", "samples", "rate", "channels")
_CHECKS = {"header": 0, "ends": 1, "full": 2}  # a cache of a higher check level serves lower ones


def scan(
    source: Source, *, depth: ScanDepth = True, fallback_folder: Path | None = None, progress: Progress = silent
) -> ClipTable:
    """The clips of `source`, from its cache if that is valid, else by inspecting every file.

    `depth`: "header" reads headers; True also decodes both ends; "full" decodes every sample; False
    uses an existing cache without checking the source. Invalid files are dropped with the reason.
    `fallback_folder`: for the cache, if the data folder is not writable. Raises UserError if the
    source cannot be listed.
    """
    if source.kind == "h5":
        return read_table(source, depth)
    check = {False: "header", True: "ends", "header": "header", "full": "full"}[depth]
    for place in _cache_paths(source, fallback_folder):
        table = _load_cache(place, source, check, trust=depth is False)
        if table is not None:
            return table
    new_place = _place_for_cache(source, fallback_folder)
    source_print = CONTAINERS[source.kind].fingerprint(source)
    index = None if new_place is None else CONTAINERS[source.kind].index_path(new_place.path)
    listing = list_source(source, index)
    table = _examine(source, listing, check, index, progress)
    if new_place is not None:
        _save_cache(new_place, table, source_print, check)
    return table


def _examine(source: Source, listing: Listing, check: str, index: Path | None, progress: Progress) -> ClipTable:
    refs, dropped = listing.refs, listing.dropped
    chunks = [refs[start : start + _CHUNK_CLIPS] for start in range(0, len(refs), _CHUNK_CLIPS)]
    examined = _results([(source, chunk, check, index) for chunk in chunks], len(refs))
    kept: list[AudioRef] = []
    figures: list[tuple[int, int, int, int]] = []
    remarks = Remarks()
    for chunk, results in zip(
        chunks, progress(examined, total=len(chunks), label=f"scan {source.path.name}"), strict=True
    ):
        for ref, result in zip(chunk, results, strict=True):
            if isinstance(result, str):
                dropped.append((ref.name, result))
            else:
                kept.append(ref)
                figures.append(result[:4])
                remarks.add(ref.name, result[4])
    first, samples, rate, channels = np.array(figures, dtype=np.int64).reshape(-1, 4).T
    label_names = sorted({name for ref in kept for name in ref.labels})
    return ClipTable(
        source,
        [ref.name for ref in kept],
        np.array([ref.offset for ref in kept], dtype=np.int64),
        np.array([ref.size for ref in kept], dtype=np.int64),
        first,
        samples,
        rate,
        channels,
        labels={name: [ref.labels.get(name) for ref in kept] for name in label_names},
        dropped=dropped,
        gzip_index=index,
        remarks=[f"{source.path.name}: {text}" for text in (*listing.remarks, *remarks.lines(len(kept)))],
    )


def _results(jobs: list[Any], clips: int) -> Iterator[list[Examined | str]]:
    processes = usable_cores()
    if clips < _PARALLEL_FROM_CLIPS or processes == 1:
        yield from map(_examine_chunk, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe: threads, open archives
    with ProcessPoolExecutor(min(processes, 32), mp_context=context) as pool:
        yield from pool.map(_examine_chunk, jobs)


def _examine_chunk(job: tuple[Source, list[AudioRef], str, Path | None]) -> list[Examined | str]:
    """The result for each clip, or the reason why it is unusable."""
    source, refs, check, index = job
    containers = Containers()
    results: list[Examined | str] = []
    last: tuple[AudioRef, AudioInfo | DecodeError] | None = None  # a manifest may cut one file into many segments
    for ref in refs:
        try:
            with containers.open(source, Place(ref.name, ref.offset, ref.size, index)) as file:
                if last is None or (last[0].name, last[0].offset) != (ref.name, ref.offset):
                    last = ref, _probed(file, measure=check != "header")
                if isinstance(last[1], DecodeError):
                    raise last[1]
                results.append(examine(file, last[1], ref.start_seconds, ref.duration_seconds, check))
        except DecodeError as error:
            results.append(str(error))
    containers.close()
    return results


def _probed(file: Any, *, measure: bool) -> AudioInfo | DecodeError:
    try:
        return probe(file, measure=measure)
    except DecodeError as error:
        return error


@dataclass(frozen=True)
class _CachePath:
    """A possible cache path of a source, and the source name in its header (`owner`)."""

    path: Path
    owner: str

    def header(self) -> dict[str, Any]:
        """The header (first line), without the columns. Empty if the file is not a valid cache."""
        try:
            with self.path.open(encoding="ascii") as file:
                header = json.loads(file.readline().rstrip().removeprefix("[").removesuffix(","))
            return header if isinstance(header, dict) else {}
        except (OSError, ValueError):
            return {}

    def belongs(self) -> bool:
        return self.header().get("source") == self.owner

    def free(self) -> bool:
        return not self.header() or self.belongs()


def _cache_paths(source: Source, fallback_folder: Path | None) -> list[_CachePath]:
    """`train.cache.json` beside train.zip, or `train.zip.cache.json` if another source uses the
    stem."""
    if source.hub is not None:  # not in the library's own cache folder
        digest = hashlib.blake2b(repr(source.hub).encode(), digest_size=6).hexdigest()
        name = f"{source.path.name}.{digest}.cache.json"
        return [] if fallback_folder is None else [_CachePath(fallback_folder / name, repr(source.hub))]
    real = source.path.resolve()
    names = [f"{stem_of(source) or real.name}.cache.json", f"{real.name}.cache.json"]
    places = [_CachePath(real.parent / name, real.name) for name in names]
    if fallback_folder is not None:
        places += [_CachePath(fallback_folder / name, str(real)) for name in names]
    return places


def _place_for_cache(source: Source, fallback_folder: Path | None) -> _CachePath | None:
    elsewhere = source.hub is not None or not is_writable_folder(source.path.resolve().parent)
    if fallback_folder is not None and elsewhere:
        with contextlib.suppress(OSError):  # no cache: the next run scans again
            fallback_folder.mkdir(parents=True, exist_ok=True)
    writable = [place for place in _cache_paths(source, fallback_folder) if is_writable_folder(place.path.parent)]
    return next((place for place in writable if place.free()), None)


def _save_cache(place: _CachePath, table: ClipTable, source_print: dict[str, Any], check: str) -> None:
    header = {
        "format": _FORMAT,
        "source": place.owner,
        "check": check,
        "fingerprint": source_print,
        "clips": len(table),
        "gzip_index_bytes": table.gzip_index.stat().st_size if table.gzip_index else None,
        "seconds": round(float((table.samples / table.rate).sum()), 3),
    }
    columns = {"names": table.names, **{name: getattr(table, name).tolist() for name in _COLUMNS}}
    columns |= {"labels": table.labels, "dropped": table.dropped, "remarks": table.remarks}
    with atomic_path(place.path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(f"[{json.dumps(header)},\n")
        json.dump(columns, file, separators=(",", ":"))
        file.write("]\n")


def _load_cache(place: _CachePath, source: Source, check: str, trust: bool) -> ClipTable | None:
    """The cached table; None if outdated, of a lower check level or corrupt."""
    try:
        return _read_cache(place, source, check, trust)
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _read_cache(place: _CachePath, source: Source, check: str, trust: bool) -> ClipTable | None:
    header = place.header()
    if header["format"] != _FORMAT or header["source"] != place.owner:
        return None
    if not trust and (
        _CHECKS[header["check"]] < _CHECKS[check]
        or header["fingerprint"] != CONTAINERS[source.kind].fingerprint(source)
    ):
        return None
    gzip_index = CONTAINERS[source.kind].index_path(place.path)
    if gzip_index is not None and gzip_index.stat().st_size != header["gzip_index_bytes"]:
        return None
    _, columns = json.loads(place.path.read_text(encoding="ascii"))
    offset, size, first, samples, rate, channels = (np.array(columns[name], dtype=np.int64) for name in _COLUMNS)
    labels, names = columns["labels"], columns["names"]
    if {len(column) for column in (offset, size, first, samples, rate, channels, *labels.values())} - {len(names)}:
        return None
    return ClipTable(
        source,
        names,
        offset,
        size,
        first,
        samples,
        rate,
        channels,
        labels=labels,
        dropped=[(name, reason) for name, reason in columns["dropped"]],
        gzip_index=gzip_index,
        remarks=columns["remarks"],
    )
