"""Reading HDF5 files of decoded audio.

All samples are in one contiguous dataset, so a window is read as a plain byte range, without h5py.
Rows of the columns: row i is clip i of the listing that the file was built from; the augmented
copies follow: row (1 + c) · clips + i is copy c of clip i. Clips that are not stored have length 0.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.containers import CONTAINERS, Containers, Place
from sjepa.dataset.listing import Source
from sjepa.dataset.table import ClipTable, ScanDepth, StoredAudio

KIND, FORMAT = "sjepa audio", 1
PROBLEM_BYTES = 120
COLUMNS: dict[str, str] = {  # one value per row
    "offset": "<i8",  # index of the first sample
    "length": "<i8",  # samples
    "crc32": "<u4",  # of the stored bytes
    "augmented": "|u1",  # 1: an augmented copy of clip `source`
    "source": "<i8",
    "problem": f"|S{PROBLEM_BYTES}",  # reason if not stored
}
SAMPLE_TYPES = {"int16": "<i2", "float32": "<f4"}
_FULL_SCALE = 32768


def read_table(source: Source, depth: ScanDepth) -> ClipTable:
    """The clips of an HDF5 file; no scan cache is needed. `depth`: "full" verifies all checksums;
    False does not check whether the original sources have changed. Raises UserError if the file was
    not made by buildh5ds or is truncated."""
    try:
        # some network file systems lack locks
        with h5py.File(source.path, "r", locking=False) as file:
            _check(source.path, file)
            table = _table(source, file)
            built_from = [
                (Source(Path(built["path"]), built["kind"]), built["fingerprint"])
                for built in json.loads(file["sources"].asstr()[()])
            ]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{source.path}: cannot be read as HDF5 of buildh5ds ({reason}); build it again") from None
    if depth is not False:
        table.remarks = [f"{source.path}: {text}" for text in _changed_since(built_from)]
    if depth == "full":
        _drop_damaged(table)
    return table


def read_stored(
    containers: Containers, table: ClipTable, row: int, start: int, length: int, *, copy: int | None = None
) -> Waveform:
    """`length` samples from `start` on of a clip or of one of its copies. The checksum is verified
    on the first complete read of a clip in each process. Raises DecodeError."""
    stored = table.stored
    assert stored is not None
    item, whole = stored.sample_type.itemsize, int(table.samples[row])
    offset = int(table.offset[row] if copy is None else stored.copy_offset_CN[copy, row])
    length = max(0, min(length, whole - start))
    with containers.open(table.source, Place(table.names[row], offset + start * item, length * item)) as file:
        content = file.read()
    if len(content) < length * item:
        raise DecodeError("file truncated inside the clip")
    version = 0 if copy is None else 1 + copy
    if length == whole and not stored.intact_VN[version, row]:
        crc32 = stored.crc32_N[row] if copy is None else stored.copy_crc32_CN[copy, row]
        if zlib.crc32(content) != crc32:
            raise DecodeError("its stored samples are damaged (checksum)")
        stored.intact_VN[version, row] = True
    return to_waveform(np.frombuffer(content, stored.sample_type))


def to_samples(waveform: Waveform, sample_type: np.dtype[Any]) -> NDArray[Any]:
    """Converts a waveform to the stored type; int16 is clipped at full scale."""
    if sample_type.kind == "f":
        return waveform.astype(sample_type, copy=False)
    scaled = np.rint(waveform * np.float32(_FULL_SCALE))
    return np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(sample_type)


def to_waveform(samples: NDArray[Any]) -> Waveform:
    """Stored samples as float32 in −1…1."""
    waveform = samples.astype(np.float32)
    if samples.dtype.kind == "i":
        waveform *= np.float32(1 / _FULL_SCALE)
    return waveform


def _check(path: Path, file: h5py.File) -> None:
    if file.attrs.get("kind") != KIND:
        raise UserError(f"{path}: an HDF5 file, but not one that buildh5ds made")
    if file.attrs["format"] != FORMAT:
        raise UserError(
            f"{path}: has format {file.attrs['format']} of sjepa {file.attrs['version']}, this version reads {FORMAT}; "
            "install that version or build it again"
        )
    samples = file["samples"]
    if samples.id.get_offset() + samples.nbytes > path.stat().st_size:
        raise ValueError("truncated inside its samples")


def _table(source: Source, file: h5py.File) -> ClipTable:
    samples, count = file["samples"], len(file["name"])
    column = {name: file[name][:].reshape(-1, count) for name in ("offset", "length", "crc32")}
    outside = (column["length"] < 0) | (column["offset"] < 0) | (column["offset"] + column["length"] > samples.size)
    if outside.any():
        raise ValueError("clip offsets out of range")
    item, start = samples.dtype.itemsize, int(samples.id.get_offset())
    position = np.where(column["length"] > 0, start + column["offset"] * item, -1)
    names = file["name"].asstr(errors="surrogateescape")[:].tolist()
    dropped = [(name, reason) for name, reason in json.loads(file["dropped"].asstr()[()])]
    dropped += [
        (names[row], text.decode("utf-8", "replace"))
        for row, text in enumerate(file["problem"][:count].tolist())
        if text
    ]
    length_N = column["length"][0]
    return ClipTable(
        source,
        names,
        offset=position[0],
        size=length_N * item,
        first=np.zeros(count, np.int64),
        samples=length_N,
        rate=np.full(count, int(file.attrs["sample_rate"])),
        channels=np.ones(count, np.int64),
        labels=_labels(file["labels"].asstr()[:].tolist()) if "labels" in file else {},
        dropped=dropped,
        stored=StoredAudio(
            samples.dtype, column["crc32"][0], position[1:], column["crc32"][1:], np.zeros(position.shape, bool)
        ),
    )


def _labels(texts: list[str]) -> dict[str, list[Any]]:
    fields = [json.loads(text) if text else {} for text in texts]
    return {name: [own.get(name) for own in fields] for name in sorted({name for own in fields for name in own})}


def _changed_since(built_from: list[tuple[Source, dict[str, Any]]]) -> Iterator[str]:
    """Warnings for original sources that have changed; missing or unreadable ones are ignored."""
    for source, before in built_from:
        now: dict[str, Any] | None = None
        with contextlib.suppress(OSError, UserError):
            now = CONTAINERS[source.kind].fingerprint(source) if source.path.exists() else None
        if now is None or now.get("listed", {}).get("files", 0) < before.get("listed", {}).get("files", 0):
            continue
        if any(now.get(name) != value for name, value in before.items()):
            yield f"older than {source.path}, which has changed; buildh5ds brings it up to date"


def _drop_damaged(table: ClipTable) -> None:
    containers = Containers()
    copies = range(len(table.stored.copy_offset_CN)) if table.stored else ()
    for row in np.flatnonzero(table.samples):
        try:
            for copy in (None, *copies):
                read_stored(containers, table, int(row), 0, int(table.samples[row]), copy=copy)
        except DecodeError as error:
            table.dropped.append((table.names[row], str(error)))
            table.samples[row] = 0
    containers.close()
