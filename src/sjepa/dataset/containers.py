"""Container formats of clips: listing, opening and fingerprints, one class per format."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.dataset import fingerprint
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.gzip_access import BLOCK_BYTES, BlockReader, GzipIndex
from sjepa.dataset.handles import Handles, part_of
from sjepa.dataset.hub import HubOptions, hub_rows
from sjepa.dataset.listing import AudioRef, Listing, Source
from sjepa.dataset.manifests import list_jsonl, list_scp, list_tsv


class Place(NamedTuple):
    """Location of a clip's bytes: name in the source, byte range for containers that are read
    directly (else −1), and the index file of a compressed archive, if any."""

    name: str
    offset: int = -1
    size: int = -1
    restart_points: Path | None = None


class Container(Protocol):
    """Interface of a container format. Methods may raise any library exception; `list_source` and
    `Containers` convert them to UserError and DecodeError."""

    @property
    def kind(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File extensions."""
        ...

    def list(self, source: Source, index: Path | None) -> Listing:
        """All audio files, in a fixed order. `index`: index file of a compressed archive
        (written)."""
        ...

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        """A seekable file of one clip's bytes."""
        ...

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """JSON values that change when the source changes."""
        ...

    def blocks(self, offset_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the compressed block of each clip; −1 if clips are read individually."""
        ...

    def index_path(self, cache: Path) -> Path | None:
        """Path of the index file, derived from the scan cache; None if the format has none."""
        ...


class _Plain:
    """Defaults: clips are read individually, no index file, fingerprint of a single file."""

    suffixes: tuple[str, ...] = ()

    def fingerprint(self, source: Source) -> dict[str, Any]:
        return fingerprint.of_file(source.path)

    def blocks(self, offset_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(offset_N), -1, np.int64)

    def index_path(self, cache: Path) -> Path | None:
        return None


class Folder(_Plain):
    kind, suffixes = "folder", ()

    def list(self, source: Source, index: Path | None) -> Listing:
        listing = Listing()
        for path in audio_files(source.path, listing):
            name = path.relative_to(source.path).as_posix()
            if path.exists():
                listing.refs.append(AudioRef(name))
            else:
                listing.dropped.append((name, "link to nothing"))
        return listing

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        return _open_file(source.path / place.name)

    def fingerprint(self, source: Source) -> dict[str, Any]:
        names = [os.path.relpath(path, source.path) for path in audio_files(source.path)]
        return fingerprint.of_files(source.path, names)


class Zip(_Plain):
    """Uncompressed entries are read directly, compressed ones with zipfile."""

    kind, suffixes = "zip", (".zip",)

    def list(self, source: Source, index: Path | None) -> Listing:
        listing = Listing()
        with zipfile.ZipFile(source.path) as archive, source.path.open("rb") as raw:
            for entry in archive.infolist():
                if entry.is_dir() or not listing.takes(entry.filename):
                    continue
                if entry.flag_bits & 1:
                    listing.dropped.append((entry.filename, "encrypted"))
                elif (entry.external_attr >> 16) & 0o170000 == 0o120000:
                    listing.dropped.append((entry.filename, "symbolic link"))
                elif entry.compress_type == zipfile.ZIP_STORED:
                    offset = _zip_data_offset(raw, entry)
                    if offset is None:
                        listing.dropped.append((entry.filename, "damaged entry"))
                    else:
                        listing.refs.append(AudioRef(entry.filename, offset, entry.file_size))
                else:
                    listing.refs.append(AudioRef(entry.filename))
        return listing

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        if place.offset >= 0:
            return _part_of_file(source.path, place, handles)
        archive = handles.get(source.path, self.kind, lambda: zipfile.ZipFile(source.path))
        return io.BytesIO(archive.read(place.name))


class Tar(_Plain):
    kind, suffixes = "tar", (".tar",)

    def list(self, source: Source, index: Path | None) -> Listing:
        with tarfile.open(source.path, "r:") as archive:
            return _tar_members(archive)

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        return _part_of_file(source.path, place, handles)


class TarGz(_Plain):
    kind, suffixes = "targz", (".tar.gz", ".tgz")

    def list(self, source: Source, index: Path | None) -> Listing:
        with GzipIndex.build(source.path, index) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            return _tar_members(archive)

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        reader = handles.get(source.path, self.kind, lambda: BlockReader(source.path, place.restart_points))
        return io.BytesIO(reader.read_range(place.offset, place.size))

    def blocks(self, offset_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return offset_N // BLOCK_BYTES

    def index_path(self, cache: Path) -> Path | None:
        return cache.with_name(cache.name.removesuffix(".cache.json") + ".gzindex")


class Hdf5(_Plain):
    """Decoded samples; `hdf5.py` reads the table and the samples."""

    kind, suffixes = "h5", (".h5", ".hdf5")

    def list(self, source: Source, index: Path | None) -> Listing:
        raise NotImplementedError

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        return _part_of_file(source.path, place, handles)


class Hub(_Plain):
    """A split of a data set of the Hugging Face library."""

    kind, suffixes = "hf", ()

    def list(self, source: Source, index: Path | None) -> Listing:
        rows = enumerate(hub_rows(_options(source)).labels())
        return Listing([AudioRef(str(row), labels=labels) for row, labels in rows])

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        return hub_rows(_options(source)).audio(int(place.name))

    def fingerprint(self, source: Source) -> dict[str, Any]:
        return hub_rows(_options(source)).fingerprint


class _Manifest(_Plain):
    """A list of paths, relative to the manifest or absolute; the fingerprint includes the files."""

    kind = ""

    def list(self, source: Source, index: Path | None) -> Listing:
        raise NotImplementedError

    def open(self, source: Source, place: Place, handles: Handles) -> BinaryIO:
        return _open_file(source.path.parent / place.name)

    def fingerprint(self, source: Source) -> dict[str, Any]:
        names = sorted({ref.name for ref in list_source(source).refs})
        return {**super().fingerprint(source), "listed": fingerprint.of_files(source.path.parent, names)}


class Jsonl(_Manifest):
    kind, suffixes = "jsonl", (".jsonl", ".jsonl.gz", ".json")  # the last: NeMo's name for it

    def list(self, source: Source, index: Path | None) -> Listing:
        return list_jsonl(source.path)


class Tsv(_Manifest):
    kind, suffixes = "tsv", (".tsv",)

    def list(self, source: Source, index: Path | None) -> Listing:
        return list_tsv(source.path)


class Scp(_Manifest):
    """Kaldi's; the files beside it that are read too are part of the fingerprint."""

    kind, suffixes = "scp", (".scp",)

    def list(self, source: Source, index: Path | None) -> Listing:
        return list_scp(source.path)

    def fingerprint(self, source: Source) -> dict[str, Any]:
        beside = [name for name in ("segments", "utt2spk", "text") if (source.path.parent / name).is_file()]
        return {**super().fingerprint(source), "beside": fingerprint.of_files(source.path.parent, beside)}


_KINDS: tuple[Container, ...] = (Folder(), TarGz(), Tar(), Zip(), Hdf5(), Jsonl(), Tsv(), Scp(), Hub())
CONTAINERS = {container.kind: container for container in _KINDS}
SUFFIXES = {suffix: container.kind for container in _KINDS for suffix in container.suffixes}


def kind_of(path: Path) -> str | None:
    """The container format by file extension; None if unknown."""
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def list_source(source: Source, gzip_index: Path | None = None) -> Listing:
    """Every audio file of a source, recursively, sorted by name (manifests and archives: in their
    own order).

    `gzip_index`: where to write the random-access index of a .tar.gz. Raises UserError if the
    source cannot be read.
    """
    try:
        return CONTAINERS[source.kind].list(source, gzip_index)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source.path}: cannot be read as {source.kind} ({error})") from None


class Containers:
    """Opens clips of any source, with cached file handles."""

    def __init__(self) -> None:
        self._handles = Handles()

    def open(self, source: Source, place: Place) -> BinaryIO:
        """A seekable file of one clip's bytes. Raises DecodeError if it cannot be read."""
        try:
            return CONTAINERS[source.kind].open(source, place, self._handles)
        except FileNotFoundError:
            raise DecodeError("no such file") from None
        except DecodeError:
            raise
        except Exception as error:  # corrupt archives make the libraries raise arbitrary exceptions
            raise DecodeError(f"unreadable in its container ({error or type(error).__name__})") from None

    def close(self) -> None:
        """Closes the file handles of this thread."""
        self._handles.close()


def audio_files(folder: Path, listing: Listing | None = None) -> Iterator[Path]:
    """Audio files below a folder; symbolic links to folders are followed once. `listing` counts
    others."""
    listing = listing or Listing()
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            if listing.takes(name):
                yield Path(parent, name)


def _zip_data_offset(raw: Any, entry: zipfile.ZipInfo) -> int | None:
    """Offset of the data of an uncompressed entry, after its local header (30 bytes, name, extra
    field). None if the header is invalid."""
    raw.seek(entry.header_offset)
    header = raw.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        return None
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return int(entry.header_offset + 30 + name_bytes + extra_bytes)


def _tar_members(archive: tarfile.TarFile) -> Listing:
    listing = Listing()
    for member in archive:
        if member.isdir() or not listing.takes(member.name):
            continue
        if member.issym() or member.islnk():
            listing.dropped.append((member.name, "link inside the archive"))
        elif member.isreg() and not member.issparse():
            listing.refs.append(AudioRef(member.name, member.offset_data, member.size))
        else:
            listing.dropped.append((member.name, "not a regular file"))
    return listing


def _part_of_file(path: Path, place: Place, handles: Handles) -> BinaryIO:
    raw = handles.get(path, "raw", lambda: path.open("rb", buffering=0))
    return part_of(raw, place.offset, place.size)


def _open_file(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
        raise DecodeError("not a regular file")
    return path.open("rb")


def _options(source: Source) -> HubOptions:
    if source.hub is None:
        raise UserError(f"{source.path}: no split of the data set is given")
    return source.hub
