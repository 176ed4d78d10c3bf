"""Files of torch: tensors and plain values, written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path


def write_torch_file(path: Path, content: dict[str, Any], *, kind: str, format_number: int) -> None:
    """Writes `content` with its kind, its format and the version of the program."""
    header = {"kind": kind, "format": format_number, "version": sjepa.__version__}
    with atomic_path(path) as temporary:
        torch.save({**header, **content}, temporary)


def read_torch_file(path: Path, *, kind: str, format_number: int, older: tuple[int, ...] = ()) -> dict[str, Any]:
    """What `write_torch_file` wrote. Raises UserError if it is missing, damaged or something else, and if its format is
    neither `format_number` nor one of the `older` ones that can still be read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises a dozen kinds
        raise UserError(f"{path}: not a file of {kind}, or damaged ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path}: not a file of {kind}")
    if content.get("format") not in (format_number, *older):
        version = content.get("version", "another version")
        raise UserError(
            f"{path}: written by sjepa {version} in format {content.get('format')}, which this version does not know "
            f"(its own is {format_number}); install {version}"
        )
    return content
