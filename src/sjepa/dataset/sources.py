"""Resolution of paths, globs and hf:// addresses to sources."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.dataset.containers import SUFFIXES, kind_of
from sjepa.dataset.hub import PREFIX, HubOptions
from sjepa.dataset.listing import Source


def resolve_sources(paths: str | list[str], hub: HubOptions | None = None) -> list[Source]:
    """Sources of a path, glob, hf:// address or a list of these, without duplicates; globs are
    sorted. `hub`: default options of hf:// addresses.

    Raises UserError if a source does not exist or has an unknown format.
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


def stem_of(source: Source) -> str:
    """The file name without the container extension: `train` for train.tar.gz."""
    name = source.path.name
    for suffix, kind in SUFFIXES.items():
        if source.kind == kind and name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _expand(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    try:
        if path.exists():
            return [path]
    except OSError as error:  # invalid file name
        raise UserError(f"{spec[:80]}…: {error.strerror}") from None
    if any(mark in spec for mark in "*?["):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        matches = [match for match in matches if match.is_dir() or kind_of(match)]
        if matches:
            return matches
        raise UserError(f"{spec}: no folder, archive or manifest matches")
    hint = "; buildh5ds makes it" if kind_of(path) == "h5" else ""
    raise UserError(f"{spec}: no such file or folder{hint}")


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder"
    kind = kind_of(path)
    if kind is None:
        endings = ", ".join(SUFFIXES)
        raise UserError(f"{path}: neither a folder nor a file ending in {endings}")
    return kind
