"""Files that appear whole or not at all."""

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

_BREAK_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})  # kinds of characters: controls, halves of pairs, separators of lines
_FAILED_WRITES = (
    "PytorchStreamWriter",
    "inline_container",
    "iostream error",
)  # how torch.save says that a write failed


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`: synced and renamed onto it on success, removed on any failure.

    Raises UserError if the file cannot be written, with what stood there before untouched.
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
    """Gives a whole file its final name, on disk for good."""
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, target)
    _sync_folder(target.parent)


def write_csv(target: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a header, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_text(target, text.getvalue())


def write_text(target: Path, text: str) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files below `folder` that a killed process of ours left; nobody may be writing there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def is_writable_folder(folder: Path) -> bool:
    """Whether a file can be made there: tried, since permission bits tell little on network file systems.

    A folder that nobody may write to by its permission bits is left alone, whoever we are.
    """
    try:
        if not folder.stat().st_mode & 0o222:
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def printable(text: str) -> str:
    """`text` with undecodable bytes of file names, line breaks, tabs and other controls shown as escapes, so that it can be
    printed, logged and written to a table anywhere."""
    if text.isprintable():
        return text
    escaped = (char.encode("unicode_escape").decode() if category(char) in _BREAK_TEXT else char for char in text)
    return "".join(escaped)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
