"""torch files of tensors and plain values: written atomically, read without running code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path


def write_torch_file(path: Path, content: dict[str, Any], *, kind: str, format_number: int) -> None:
    """Writes `content` with a header: file kind, format number and package version."""
    header = {"kind": kind, "format": format_number, "version": sjepa.__version__}
    with atomic_path(path) as temporary:
        torch.save({**header, **content}, temporary)


def read_torch_file(path: Path, *, kind: str, format_number: int, older: tuple[int, ...] = ()) -> dict[str, Any]:
    """Reads a file of `write_torch_file`. Raises UserError if it is missing, corrupt or of another
    kind, or if its format is neither `format_number` nor one of the supported `older` formats."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError:  # its message tells how to load the file without safety
        raise UserError(f"{path}: not a file of {kind}, or damaged") from None
    except Exception as error:  # torch.load raises many types
        why = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"{path}: not a file of {kind}, or damaged ({why})") from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path}: not a file of {kind}")
    if content.get("format") not in (format_number, *older):
        version = content.get("version", "another version")
        raise UserError(
            f"{path}: written by sjepa {version} in format {content.get('format')}, which this version does not know "
            f"(its own is {format_number}); install {version}"
        )
    return content


class _Unused:
    """Stands for an object of another program."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Ignored."""


def read_foreign_file(path: Path, *, unused: Sequence[str]) -> dict[str, Any]:
    """Reads a dictionary that another program wrote by torch, without running code. `unused`:
    classes whose objects are of no use, replaced by empty ones. Raises UserError if the file is
    missing, damaged, or holds an object of any other class."""
    try:
        with torch.serialization.safe_globals([(_Unused, name) for name in unused]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it would run {unsafe[1]}" if unsafe else "it is not a file of tensors"
        raise UserError(f"{path}: refused, {what}") from None
    except Exception as error:  # torch.load raises many types
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not a state")
    return content


def kind_of(path: Path) -> str | None:
    """The kind of a file of `write_torch_file`; None if it is no such file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch.load raises many types
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None
