"""Where audio comes from: folders, archives, manifests, globs and lists of them, listed without unpacking."""

from __future__ import annotations

import glob
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sjepa.core.errors import UserError
from sjepa.core.files import printable
from sjepa.dataset.endings import AUDIO, KNOWN_OTHERS, is_hidden
from sjepa.dataset.gzip_access import GzipIndex
from sjepa.dataset.hub import PREFIX, HubOptions, hub_rows

Kind = Literal["folder", "zip", "tar", "targz", "h5", "hf", "jsonl", "tsv"]

_ARCHIVES: dict[str, Kind] = {".tar.gz": "targz", ".tgz": "targz", ".tar": "tar", ".zip": "zip"}
_DECODED: dict[str, Kind] = {".h5": "h5", ".hdf5": "h5"}
_MANIFESTS: dict[str, Kind] = {".jsonl": "jsonl", ".tsv": "tsv"}
_SUFFIXES = _ARCHIVES | _DECODED | _MANIFESTS
_LONGEST_SECONDS = 1e8  # three years


@dataclass(frozen=True)
class Source:
    """One folder, archive, HDF5 file or manifest on disk, or one split of a data set of the Hugging Face library."""

    path: Path
    kind: Kind
    hub: HubOptions | None = None

    @property
    def identity(self) -> tuple[Path, HubOptions | None]:
        """Equal for two names of the same."""
        return self.path.resolve(), self.hub

    @property
    def stem(self) -> str:
        """The name without the endings that say the kind: `train` for train.tar.gz."""
        name = self.path.name
        for suffix in _SUFFIXES:
            if self.kind != "folder" and name.lower().endswith(suffix):
                return name[: -len(suffix)]
        return name


@dataclass(frozen=True, slots=True)
class AudioRef:
    """One clip before it was looked into: its path inside its source (beside it, or absolute, for a manifest) and where
    its bytes are.

    `offset`/`size` are byte positions for containers that are read directly (tar, stored zip entries), else −1.
    `start_seconds`/`duration_seconds` cut a segment out of the file (JSONL manifests).
    """

    name: str
    offset: int = -1
    size: int = -1
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass
class Listing:
    """What a source holds: clips in a fixed order, and entries that cannot be clips with the reason."""

    refs: list[AudioRef] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)  # files of other endings

    def takes(self, name: str) -> bool:
        """Whether a file of this name is a clip; others are counted by their endings."""
        if is_hidden(name):
            return False
        ending = os.path.splitext(name)[1].lower()
        if ending not in AUDIO and ending not in KNOWN_OTHERS:
            self.passed[ending] += 1
        return ending in AUDIO

    @property
    def remarks(self) -> list[str]:
        """What was passed over, in a line."""
        if not self.passed:
            return []
        kinds = ", ".join(
            f"{count:,} {printable(ending) or 'without ending'}" for ending, count in self.passed.most_common(8)
        )
        return [f"passed over by their endings: {kinds}"]


def resolve_sources(paths: str | list[str], hub: HubOptions | None = None) -> list[Source]:
    """The sources that a path, a glob, an hf:// address or a list of these names, each once, globs in sorted order. `hub` is
    what holds for addresses that say nothing else.

    Raises UserError if one does not exist or is of no known kind.
    """
    found: dict[Any, Source] = {}
    for spec in [paths] if isinstance(paths, str) else paths:
        for source in _named(spec, hub or HubOptions()):
            found.setdefault(source.identity, source)
    return list(found.values())


def _named(spec: str, hub: HubOptions) -> list[Source]:
    if spec.startswith(PREFIX):
        options = hub.of(spec)
        return [Source(options.path, "hf", options)]
    return [Source(path, _kind(path)) for path in _expand(spec)]


def list_source(source: Source, gzip_index: Path | None = None) -> Listing:
    """Every audio file of a source, recursively, sorted by name (manifests and archives: in their own order).

    `gzip_index` is where the random-access index of a .tar.gz is kept. Raises UserError if the source itself is broken.
    """
    try:
        if source.kind == "folder":
            return _list_folder(source.path)
        if source.kind == "zip":
            return _list_zip(source.path)
        if source.kind == "tar":
            return _list_tar(source.path)
        if source.kind == "targz":
            return _list_targz(source.path, gzip_index)
        if source.hub is not None:
            return _list_hub(source.hub)
        return _list_jsonl(source.path) if source.kind == "jsonl" else _list_tsv(source.path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source.path}: cannot be read as {source.kind} ({error})") from None


def _expand(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    try:
        if path.exists():
            return [path]
    except OSError as error:  # a name that no file can have
        raise UserError(f"{spec[:80]}…: {error.strerror}") from None
    if any(mark in spec for mark in "*?["):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        matches = [match for match in matches if match.is_dir() or _suffix_kind(match)]
        if matches:
            return matches
        raise UserError(f"{spec}: no folder, archive or manifest matches")
    hint = "; buildh5ds makes it" if _suffix_kind(path) == "h5" else ""
    raise UserError(f"{spec}: no such file or folder{hint}")


def _kind(path: Path) -> Kind:
    if path.is_dir():
        return "folder"
    kind = _suffix_kind(path)
    if kind is None:
        endings = ", ".join(_SUFFIXES)
        raise UserError(f"{path}: neither a folder nor a file ending in {endings}")
    return kind


def _suffix_kind(path: Path) -> Kind | None:
    name = path.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def audio_files(folder: Path, listing: Listing | None = None) -> Iterator[Path]:
    """Audio files below a folder; linked folders are followed once. `listing` counts the others."""
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


def _list_folder(folder: Path) -> Listing:
    listing = Listing()
    for path in audio_files(folder, listing):
        name = path.relative_to(folder).as_posix()
        if path.exists():
            listing.refs.append(AudioRef(name))
        else:
            listing.dropped.append((name, "link to nothing"))
    return listing


def _list_zip(path: Path) -> Listing:
    listing = Listing()
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
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


def _zip_data_offset(raw: Any, entry: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a stored entry start: its local header is 30 bytes, a name and an extra field.
    None if there is no such header."""
    raw.seek(entry.header_offset)
    header = raw.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        return None
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return int(entry.header_offset + 30 + name_bytes + extra_bytes)


def _list_tar(path: Path) -> Listing:
    with tarfile.open(path, "r:") as archive:
        return _tar_members(archive)


def _list_targz(path: Path, index: Path | None) -> Listing:
    with GzipIndex.build(path, index) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        return _tar_members(archive)


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


def _list_hub(options: HubOptions) -> Listing:
    return Listing([AudioRef(str(row), labels=labels) for row, labels in enumerate(hub_rows(options).labels())])


def _list_jsonl(path: Path) -> Listing:
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
    """Lines ended by line feeds alone: names may hold other characters that Unicode calls line ends."""
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
        # a duration alone describes the file; with an offset it cuts a segment out of it
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


def _list_tsv(path: Path) -> Listing:
    """A fairseq manifest: the root folder on the first line, then `path<TAB>samples`."""
    root, *lines = _lines(path)
    if not root.strip() or not (path.parent / root.strip()).is_dir():
        raise UserError(f"{path}: line 1 is {root.strip()!r}, not the folder that the paths below it start from")
    names = [line.split("\t")[0].strip() for line in lines]
    return Listing([AudioRef(f"{root.strip()}/{name}") for name in names if name])
