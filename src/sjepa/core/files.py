"""Atomic file writes and helpers for files and folders."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from sjepa.core.errors import UserError

# Unicode categories: control, surrogate, line and paragraph separator
_BREAK_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})
_FAILED_WRITES = (
    "PytorchStreamWriter",
    "inline_container",
    "iostream error",
)  # in error messages of torch.save when a write fails


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`: synced and renamed onto it on success, removed on any
    failure.

    Raises UserError if the file cannot be written; an existing `target` is then unchanged.
    """
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in _FAILED_WRITES):
            raise UserError(f"{target}: cannot be written (disk full?)") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path) -> None:
    """Renames a complete file to its final name, with fsync of the file and its folder."""
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, target)
    _sync_folder(target.parent)


def write_csv(target: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table with a header, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_text(target, text.getvalue())


def write_text(target: Path, text: str) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed processes in `folder`. No process may write there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def is_writable_folder(folder: Path) -> bool:
    """Whether a file can be created there. It is tried, as permission bits are unreliable on
    network file systems; only a folder without any write bit is never written to, not even by root.
    """
    try:
        if not folder.stat().st_mode & 0o222:
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def printable(text: str) -> str:
    """`text` with undecodable bytes, line breaks, tabs and other control characters escaped, for
    terminals, logs and tables."""
    if text.isprintable():
        return text
    escaped = (char.encode("unicode_escape").decode() if category(char) in _BREAK_TEXT else char for char in text)
    return "".join(escaped)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
