"""Building the HDF5 file: decoded in parallel, written by one process, gone on with after any stop.

The file is laid out in full before the first sample is decoded, so that every clip has its place and the disk is known to
have room. It grows under a name of its own and takes its final one when all of it is on disk.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import publish
from sjepa.core.progress import Progress
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.augment import Augmentation, PartnerError
from sjepa.dataset.batch import Failure
from sjepa.dataset.clips import Clips
from sjepa.dataset.hdf5 import COLUMNS, FORMAT, KIND, PROBLEM_BYTES, SAMPLE_TYPES, to_samples
from sjepa.dataset.loader import quiet_worker
from sjepa.dataset.sources import fingerprint
from sjepa.dataset.windows import Windows, tiles

_PIECE_SECONDS = 600  # of a clip that are in memory at a time
_REQUEST_CLIPS = 16
_SECONDS_BETWEEN_MARKS = 5.0
_WRITTEN = ("length", "crc32", "problem")  # columns that are known once a clip was decoded


@dataclass(frozen=True)
class BuildPlan:
    """What a file is to hold: clips, and `copies` of each as `augmentation` makes them, tile by tile of `tile_samples`."""

    clips: Clips
    dropped: list[tuple[str, str]]
    sample_type: str = "int16"
    copies: int = 0
    augmentation: Augmentation | None = None
    tile_samples: int = 15 * 16000
    seed: int = 0

    @property
    def samples(self) -> int:
        return (1 + self.copies) * int(self.clips.length_N.sum())

    @property
    def bytes(self) -> int:
        """Of samples and columns; names come on top."""
        rows = (1 + self.copies) * self.clips.listed
        per_row = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())
        return self.samples * np.dtype(SAMPLE_TYPES[self.sample_type]).itemsize + rows * per_row

    def identity(self) -> str:
        """Equal for two plans that make the same file."""
        made = self.augmentation
        settings = None if made is None else [made.p_noise, made.p_mix, made.snr_db, made.ratio_db]
        noise = None if made is None or made.noise is None else _described(made.noise)
        stored = zlib.crc32(self.clips.id_N.tobytes() + self.clips.length_N.tobytes())
        parts = [FORMAT, self.clips.sample_rate, self.sample_type, self.copies, stored, _described(self.clips)]
        if self.copies:
            parts += [settings, noise, self.tile_samples, self.seed]
        return json.dumps(parts)


class Built(NamedTuple):
    """What came of a build. `clipped`: samples beyond full scale, which int16 cuts off; `partners`: clips that could not be
    mixed into another's copy."""

    target: Path
    bytes: int
    clips: int
    problems: list[Failure]
    clipped: int
    partners: list[Failure]


class Stopped(Exception):
    """The build was asked to stop, and will go on from where it is: so many clips are stored."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips)
        self.clips = clips


def is_current(plan: BuildPlan, target: Path) -> bool:
    """Whether `target` is already what the plan would make."""
    try:
        with h5py.File(target, "r", locking=False) as file:
            stored = file["name"].shape[0] == plan.clips.listed and int(file["progress"][0]) == len(plan.clips)
            return bool(stored and file["identity"].asstr()[()] == plan.identity())
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def progress_of(plan: BuildPlan, target: Path) -> int:
    """Clips that an earlier, unfinished build of the same plan has stored."""
    partial = _partial(target)
    try:
        with h5py.File(partial, "r", locking=False) as file:
            return int(file["progress"][0]) if file["identity"].asstr()[()] == plan.identity() else 0
    except (OSError, KeyError, ValueError, RuntimeError):
        return 0


def check_room(plans: dict[Path, BuildPlan]) -> None:
    """Makes the folders of the files to be built. Raises UserError if one cannot be made, or if a disk has too little room
    for all that is to go there."""
    wanted: dict[int, list[tuple[Path, int]]] = {}
    for target, plan in plans.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{target}: its folder cannot be made ({error.strerror or error})") from None
        wanted.setdefault(target.parent.stat().st_dev, []).append((target, plan.bytes - _taken(_partial(target))))
    for files in wanted.values():
        needed, free = sum(count for _, count in files), shutil.disk_usage(files[0][0].parent).free
        if needed > free:
            names = " and ".join(str(target) for target, _ in files)
            raise UserError(f"{names}: {size_text(needed)} are needed and {size_text(free)} are free")


def size_text(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _taken(path: Path) -> int:
    """Bytes of the disk that a file has."""
    if not path.exists():
        return 0
    status = path.stat()
    return getattr(status, "st_blocks", status.st_size // 512) * 512


def build(
    plan: BuildPlan,
    target: Path,
    *,
    num_workers: int,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Built:
    """Makes `target`, going on with what an earlier call left. Raises Stopped soon after `stop` says so, UserError if the
    disk is full (what is stored stays) or if another process is building it."""
    partial = _partial(target)
    try:
        with _locked(partial):
            if not progress_of(plan, target):
                try:
                    _lay_out(plan, partial)
                except (OSError, RuntimeError) as error:  # h5py says the latter of a full disk
                    partial.unlink()
                    raise UserError(f"{target}: cannot be written ({' '.join(str(error).split())})") from error
            with partial.open("rb+", buffering=0) as raw:
                writer = _Writer(plan, partial, raw)
                _write_all(plan, writer, num_workers, progress, stop)
                writer.mark()
            publish(partial, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); run it again to go on") from error
    clips = int((writer.column["length"][: plan.clips.listed] > 0).sum())
    return Built(target, target.stat().st_size, clips, writer.problems, writer.clipped, writer.partners)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _described(clips: Clips) -> list[dict[str, Any]]:
    return [
        {"path": str(source.path.resolve()), "kind": source.kind, "fingerprint": fingerprint(source)}
        for source in clips.sources
    ]


def _lay_out(plan: BuildPlan, path: Path) -> None:
    """The whole file, its samples and the columns `_WRITTEN` still empty."""
    clips, versions = plan.clips, 1 + plan.copies
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
            ("identity", plan.identity()),
            ("sources", json.dumps(_described(clips))),
            ("dropped", json.dumps(plan.dropped)),
        ):
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        file.create_dataset("name", data=names, dtype=h5py.string_dtype())
        labels = [clips.labels(position) for position in range(len(clips))]
        if any(labels):
            texts = np.full(listed, "", object)
            texts[ids] = [json.dumps(own) for own in labels]
            file.create_dataset("labels", data=texts, dtype=h5py.string_dtype())
        for name, kind in {**COLUMNS, "progress": "<i8", "samples": SAMPLE_TYPES[plan.sample_type]}.items():
            rows = {"progress": 1, "samples": plan.samples}.get(name, versions * listed)
            _allocate(file, name, kind, rows)
            if name != "samples":
                file[name][:] = known[name].ravel() if name in known else np.zeros(rows, kind)
    _reserve(path)


def _reserve(path: Path) -> None:
    """Claims the disk space of a file, where the file system can. Raises OSError if there is too little."""
    with path.open("rb+") as raw:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
        os.fsync(raw.fileno())


def _allocate(file: h5py.File, name: str, kind: str, rows: int) -> None:
    """A contiguous column whose place in the file is fixed at once, not filled."""
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
def _locked(path: Path) -> Iterator[None]:
    """Makes the file if need be, and keeps others from building it. Raises UserError if another process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as held:
        try:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: the file cannot be opened twice there
            pass
        except BlockingIOError:
            raise UserError(f"{path}: another process is building it") from None
        yield


class _Writer:
    """The one that writes. A clip counts as stored once its samples, its columns and then the mark are on disk."""

    def __init__(self, plan: BuildPlan, path: Path, raw: io.FileIO) -> None:
        self._plan, self._raw = plan, raw
        with h5py.File(path, "r", locking=False) as file:
            self._place = {name: int(file[name].id.get_offset()) for name in (*_WRITTEN, "progress", "samples")}
            self.column: dict[str, NDArray[Any]] = {name: file[name][:] for name in (*_WRITTEN, "offset")}
            self.done = self._marked = int(file["progress"][0])
        unmarked = plan.clips.id_N[self.done :]
        for version in range(1 + plan.copies):
            for name in _WRITTEN:
                self.column[name][version * plan.clips.listed + unmarked] = np.zeros((), COLUMNS[name])
        self._sample = np.dtype(SAMPLE_TYPES[plan.sample_type])
        self._marked_at = time.monotonic()
        self.clipped = 0
        self.problems: list[Failure] = []
        self.partners: list[Failure] = []

    def piece(self, position: int, versions: Sequence[NDArray[Any]]) -> None:
        """The next samples of a clip and of its copies."""
        for version, samples in enumerate(versions):
            row = self._row(position, version)
            first = int(self.column["offset"][row] + self.column["length"][row])
            content = samples.tobytes()
            self._write(self._place["samples"] + first * self._sample.itemsize, content)
            self.column["length"][row] += len(samples)
            self.column["crc32"][row] = zlib.crc32(content, int(self.column["crc32"][row]))

    def failed(self, position: int, reason: str) -> None:
        for version in range(1 + self._plan.copies):
            row = self._row(position, version)
            self.column["length"][row] = self.column["crc32"][row] = 0
        text = reason.encode()[:PROBLEM_BYTES].decode("utf-8", "ignore").encode()
        self.column["problem"][self._row(position, 0)] = text
        self.problems.append(Failure(self._plan.clips.name(position), reason))

    def finished(self, position: int) -> None:
        self.done = position + 1
        if time.monotonic() - self._marked_at > _SECONDS_BETWEEN_MARKS:
            self.mark()

    def mark(self) -> None:
        """Brings all that is stored to the disk, and then the mark that says so."""
        if self.done > self._marked:
            listed, ids = self._plan.clips.listed, self._plan.clips.id_N
            first, last = int(ids[self._marked]), int(ids[self.done - 1])
            for name in _WRITTEN:
                column = self.column[name]
                for version in range(1 + self._plan.copies):
                    rows = slice(version * listed + first, version * listed + last + 1)
                    self._write(self._place[name] + rows.start * column.itemsize, column[rows].tobytes())
            os.fsync(self._raw.fileno())
            self._write(self._place["progress"], np.array([self.done], "<i8").tobytes())
            os.fsync(self._raw.fileno())
            self._marked = self.done
        self._marked_at = time.monotonic()

    def _row(self, position: int, version: int) -> int:
        return version * self._plan.clips.listed + int(self._plan.clips.id_N[position])

    def _write(self, place: int, content: bytes) -> None:
        self._raw.seek(place)
        left = memoryview(content)
        while left:
            left = left[self._raw.write(left) :]


class _Decoded(NamedTuple):
    """A piece of a clip in the file's type, first the clip's own and then of each copy; or the reason why there is none."""

    position: int
    is_last: bool
    versions: list[NDArray[Any]]
    problem: str = ""
    clipped: int = 0
    partners: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class _Pieces(Dataset[_Decoded]):
    """Decodes the pieces of all clips, in any process."""

    plan: BuildPlan
    pieces: Windows = field(repr=False)

    def __getitem__(self, number: int) -> _Decoded:
        plan, pieces = self.plan, self.pieces
        position, start, length = (int(column[number]) for column in (pieces.clip_N, pieces.start_N, pieces.length_N))
        is_last = start + length >= int(plan.clips.length_N[position])
        try:
            clean = plan.clips.read(position, start=start, length=length)
        except DecodeError as error:
            return _Decoded(position, is_last, [], str(error))
        kind = np.dtype(SAMPLE_TYPES[plan.sample_type])
        partners: list[Failure] = []
        copies = [self._copy(clean, position, start, number, partners) for number in range(plan.copies)]
        clipped = int((np.abs(clean) > 1).sum()) if kind.kind == "i" else 0
        stored = [to_samples(waveform, kind) for waveform in (clean, *copies)]
        return _Decoded(position, is_last, stored, clipped=clipped, partners=tuple(partners))

    def _copy(self, clean: Waveform, position: int, start: int, number: int, partners: list[Failure]) -> Waveform:
        """The augmented piece. A tile louder than full scale is brought down to it: the encoder hears no level."""
        plan = self.plan
        assert plan.augmentation is not None
        heard = clean.copy()
        for first in range(0, len(clean), plan.tile_samples):
            tile = clean[first : first + plan.tile_samples]
            rng = generator(plan.seed, "copy", number, int(plan.clips.id_N[position]), start + first)
            try:
                made = plan.augmentation(tile, position, plan.clips, rng)
            except PartnerError as error:
                partners.append(Failure(error.name, error.reason, is_own=False))
                continue
            heard[first : first + len(tile)] = made / max(1.0, float(np.abs(made).max()))
        return heard


def _write_all(
    plan: BuildPlan, writer: _Writer, num_workers: int, progress: Progress, stop: Callable[[], bool]
) -> None:
    clips = plan.clips
    pieces = tiles(clips.length_N, _PIECE_SECONDS * clips.sample_rate)
    numbers = np.flatnonzero(pieces.clip_N >= writer.done)
    loader = DataLoader(
        _Pieces(plan, pieces),
        batch_sampler=_requests(numbers, pieces.length_N, _PIECE_SECONDS * clips.sample_rate),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=quiet_worker,
    )
    failed = -1
    for decoded in progress(
        (item for group in loader for item in group), total=len(numbers), label=f"{len(clips) - writer.done} clips"
    ):
        if decoded.problem and failed != decoded.position:
            failed = decoded.position
            writer.failed(failed, decoded.problem)
        if failed != decoded.position:
            writer.piece(decoded.position, decoded.versions)
        writer.clipped += decoded.clipped
        writer.partners += decoded.partners
        if decoded.is_last:
            writer.finished(decoded.position)
        if stop():
            writer.mark()
            raise Stopped(writer.done)


def _requests(numbers: NDArray[np.int64], length_N: NDArray[np.int64], most: int) -> list[list[int]]:
    """Pieces that travel together, in order: a few, and never more than `most` samples."""
    groups: list[list[int]] = []
    taken = most
    for number in numbers.tolist():
        length = int(length_N[number])
        if taken + length > most or len(groups[-1]) >= _REQUEST_CLIPS:
            groups.append([])
            taken = 0
        groups[-1].append(number)
        taken += length
    return groups
