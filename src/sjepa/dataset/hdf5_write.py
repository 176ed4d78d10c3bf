"""Writing the HDF5 file: its content, its layout and the single writer.

The file is preallocated before decoding starts, so that every clip's offset is fixed and disk space
is reserved. It is written as `*.partial` and renamed once complete.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import sjepa
from sjepa.core.errors import UserError
from sjepa.dataset.augment import Augmentation
from sjepa.dataset.batch import Failure
from sjepa.dataset.clips import Clips
from sjepa.dataset.containers import CONTAINERS
from sjepa.dataset.hdf5 import COLUMNS, FORMAT, KIND, PROBLEM_BYTES, SAMPLE_TYPES

_SECONDS_BETWEEN_MARKS = 5.0
_WRITTEN = ("length", "crc32", "problem")  # columns filled after decoding


@dataclass(frozen=True)
class FileContent:
    """Content of a file to build: clips and `copies` augmented copies of each, made tile by tile
    (`tile_samples`) by `augmentation`."""

    clips: Clips
    dropped: list[tuple[str, str]]
    sample_type: str = "int16"
    copies: int = 0
    augmentation: Augmentation | None = None
    tile_samples: int | None = None  # None: whole clips
    seed: int = 0

    @property
    def samples(self) -> int:
        return (1 + self.copies) * int(self.clips.length_N.sum())

    @property
    def bytes(self) -> int:
        """Size of samples and columns, without the names."""
        rows = (1 + self.copies) * self.clips.listed
        per_row = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())
        return self.samples * np.dtype(SAMPLE_TYPES[self.sample_type]).itemsize + rows * per_row

    @cached_property
    def sources(self) -> list[dict[str, Any]]:
        """Path, kind and fingerprint of each source."""
        return _described(self.clips)

    @cached_property
    def identity(self) -> str:
        """Equal for contents that produce the same file."""
        made = self.augmentation
        settings = None if made is None else made.settings
        noise = None if made is None or made.noise is None else _described(made.noise)
        stored = zlib.crc32(self.clips.id_N.tobytes() + self.clips.length_N.tobytes())
        apart = self.clips.sources_apart
        parts = [FORMAT, self.clips.sample_rate, self.sample_type, self.copies, stored, self.sources]
        if self.copies:
            parts += [settings, noise, self.tile_samples, self.seed, apart]
        return json.dumps(parts)


def is_current(content: FileContent, target: Path) -> bool:
    """Whether `target` exists, is complete and matches the content."""
    try:
        with h5py.File(target, "r", locking=False) as file:
            stored = file["name"].shape[0] == content.clips.listed and int(file["progress"][0]) == len(content.clips)
            return bool(stored and file["identity"].asstr()[()] == content.identity)
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def progress_of(content: FileContent, target: Path) -> int:
    """Number of clips stored by an unfinished build of the same content."""
    partial = partial_path(target)
    try:
        with h5py.File(partial, "r", locking=False) as file:
            return int(file["progress"][0]) if file["identity"].asstr()[()] == content.identity else 0
    except (OSError, KeyError, ValueError, RuntimeError):
        return 0


def check_room(contents: dict[Path, FileContent]) -> None:
    """Creates the folders of the files to build. Raises UserError if a folder cannot be created, a
    file name is invalid or a disk has too little free space."""
    wanted: dict[int, list[tuple[Path, int]]] = {}
    for target, content in contents.items():
        if target.suffix.lower() not in (".h5", ".hdf5") or any(mark in str(target) for mark in "*?["):
            raise UserError(f"{target}: not a plain name that ends in .h5 or .hdf5")
        if target.is_dir():
            raise UserError(f"{target}: is a folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{target}: its folder cannot be made ({error.strerror or error})") from None
        wanted.setdefault(target.parent.stat().st_dev, []).append(
            (target, content.bytes - _taken(partial_path(target)))
        )
    for files in wanted.values():
        needed, free = sum(count for _, count in files), shutil.disk_usage(files[0][0].parent).free
        if needed > free:
            names = " and ".join(str(target) for target, _ in files)
            raise UserError(f"{names}: {size_text(needed)} are needed and {size_text(free)} are free")


def size_text(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _taken(path: Path) -> int:
    """Allocated disk space of a file, bytes."""
    if not path.exists():
        return 0
    status = path.stat()
    return getattr(status, "st_blocks", status.st_size // 512) * 512


def partial_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _described(clips: Clips) -> list[dict[str, Any]]:
    return [
        {
            "path": str(source.path.resolve()) if source.hub is None else repr(source.hub),
            "kind": source.kind,
            "fingerprint": CONTAINERS[source.kind].fingerprint(source),
        }
        for source in clips.sources
    ]


def lay_out(content: FileContent, path: Path) -> None:
    """Creates the preallocated file; samples and the columns `_WRITTEN` are still empty."""
    clips, versions = content.clips, 1 + content.copies
    listed, ids = clips.listed, clips.id_N
    start_N = np.cumsum(clips.length_N) - clips.length_N
    offset, augmented = np.zeros((versions, listed), "<i8"), np.zeros((versions, listed), "|u1")
    for version in range(versions):
        offset[version, ids] = start_N * versions + version * clips.length_N
        augmented[version] = version > 0
    names = np.full(listed, "", object)
    names[ids] = [clips.name(position) for position in range(len(clips))]
    known = {"offset": offset, "augmented": augmented, "source": np.tile(np.arange(listed), (versions, 1))}
    with h5py.File(path, "w", locking=False) as file:
        file.attrs.update({"kind": KIND, "format": FORMAT, "version": sjepa.__version__})
        file.attrs["sample_rate"] = clips.sample_rate
        for name, text in (
            ("identity", content.identity),
            ("sources", json.dumps(content.sources)),
            ("dropped", json.dumps(content.dropped)),
        ):
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        file.create_dataset("name", data=names, dtype=h5py.string_dtype())
        labels = [clips.labels(position) for position in range(len(clips))]
        if any(labels):
            texts = np.full(listed, "", object)
            texts[ids] = [json.dumps(own) for own in labels]
            file.create_dataset("labels", data=texts, dtype=h5py.string_dtype())
        for name, kind in {**COLUMNS, "progress": "<i8", "samples": SAMPLE_TYPES[content.sample_type]}.items():
            rows = {"progress": 1, "samples": content.samples}.get(name, versions * listed)
            _allocate(file, name, kind, rows)
            if name != "samples":
                file[name][:] = known[name].ravel() if name in known else np.zeros(rows, kind)
    _reserve(path)


def _reserve(path: Path) -> None:
    """Allocates the disk space of a file, if the file system supports it. Raises OSError if
    full."""
    with path.open("rb+") as raw:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
        os.fsync(raw.fileno())


def _allocate(file: h5py.File, name: str, kind: str, rows: int) -> None:
    """Creates a contiguous dataset, allocated immediately and not initialised."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(
        file.id,
        name.encode(),
        h5py.h5t.py_create(np.dtype(kind), logical=True),
        h5py.h5s.create_simple((rows,)),
        settings,
    )


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock file for a build. Raises UserError if another process holds it."""
    path = target.with_name(f".{target.name}.lock")
    with path.open("ab") as held:
        try:
            import fcntl

            # POSIX lock: not inherited by worker processes
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"{target}: another process is building it") from None
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                raise
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows cannot delete an open file
                path.unlink()


class Writer:
    """The single writer. A clip counts as stored when its samples, its columns and then the
    progress counter have been synced to disk."""

    def __init__(self, content: FileContent, path: Path, raw: io.FileIO) -> None:
        self._content, self._raw = content, raw
        with h5py.File(path, "r", locking=False) as file:
            self._place = {name: int(file[name].id.get_offset()) for name in (*_WRITTEN, "progress", "samples")}
            self.column: dict[str, NDArray[Any]] = {name: file[name][:] for name in (*_WRITTEN, "offset")}
            self.done = self._marked = int(file["progress"][0])
        unmarked = content.clips.id_N[self.done :]
        for version in range(1 + content.copies):
            for name in _WRITTEN:
                self.column[name][version * content.clips.listed + unmarked] = np.zeros((), COLUMNS[name])
        self._sample = np.dtype(SAMPLE_TYPES[content.sample_type])
        self._marked_at = time.monotonic()
        self.clipped = 0
        self.partners: list[Failure] = []

    def piece(self, position: int, versions: Sequence[NDArray[Any]]) -> None:
        """Appends samples of a clip and of its copies."""
        for version, samples in enumerate(versions):
            row = self._row(position, version)
            first = int(self.column["offset"][row] + self.column["length"][row])
            raw = samples.tobytes()
            self._write(self._place["samples"] + first * self._sample.itemsize, raw)
            self.column["length"][row] += len(samples)
            self.column["crc32"][row] = zlib.crc32(raw, int(self.column["crc32"][row]))

    def failed(self, position: int, reason: str) -> None:
        for version in range(1 + self._content.copies):
            row = self._row(position, version)
            self.column["length"][row] = self.column["crc32"][row] = 0
        text = reason.encode()[:PROBLEM_BYTES].decode("utf-8", "ignore").encode()
        self.column["problem"][self._row(position, 0)] = text

    def problems(self) -> list[Failure]:
        """All clips that could not be stored, including those of earlier runs."""
        ids, found = self._content.clips.id_N, self.column["problem"][: self._content.clips.listed]
        failed = np.flatnonzero(found[ids] != b"")
        return [
            Failure(self._content.clips.name(int(position)), found[ids[position]].decode("utf-8", "replace"))
            for position in failed
        ]

    def finished(self, position: int) -> None:
        self.done = position + 1
        if time.monotonic() - self._marked_at > _SECONDS_BETWEEN_MARKS:
            self.mark()

    def mark(self) -> None:
        """Syncs columns and samples to disk, then updates and syncs the progress counter."""
        if self.done > self._marked:
            listed, ids = self._content.clips.listed, self._content.clips.id_N
            first, last = int(ids[self._marked]), int(ids[self.done - 1])
            for name in _WRITTEN:
                column = self.column[name]
                for version in range(1 + self._content.copies):
                    rows = slice(version * listed + first, version * listed + last + 1)
                    self._write(self._place[name] + rows.start * column.itemsize, column[rows].tobytes())
            os.fsync(self._raw.fileno())
            self._write(self._place["progress"], np.array([self.done], "<i8").tobytes())
            os.fsync(self._raw.fileno())
            self._marked = self.done
        self._marked_at = time.monotonic()

    def _row(self, position: int, version: int) -> int:
        return version * self._content.clips.listed + int(self._content.clips.id_N[position])

    def _write(self, place: int, raw: bytes) -> None:
        self._raw.seek(place)
        left = memoryview(raw)
        while left:
            left = left[self._raw.write(left) :]
