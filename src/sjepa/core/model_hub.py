"""Weights on the Hugging Face Hub, on request alone: hf://OWNER/NAME, or
hf://OWNER/NAME@REVISION."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError

PREFIX = "hf://"
_NEEDED = ("*.json", "*.safetensors", "*.py", "*.md")  # of a model's folder; copies in other formats stay there
_LIBRARIES = ("huggingface_hub", "httpx", "requests")


def is_hub(spec: object) -> bool:
    return str(spec).startswith(PREFIX)


def fetched(spec: str, key: str) -> Path:
    """The folder of a model, from the library's cache or downloaded. `key`: for messages. Raises
    UserError."""
    library = _library(key)
    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    with _told(f"{key}: {spec}"):
        return Path(library.snapshot_download(name, revision=revision or None, allow_patterns=list(_NEEDED)))


def upload(folder: Path, name: str, key: str) -> str:
    """Uploads a folder to the model repository `name` (made, private, if it is not there). Returns
    its address. Raises UserError."""
    library, name = _library(key), name.removeprefix(PREFIX)
    with _told(f"{key}: {name}"):
        made = library.create_repo(name, private=True, exist_ok=True)
        library.upload_folder(repo_id=name, folder_path=folder, commit_message="Encoder exported by sjepa")
        return str(made)


def _library(key: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{key}: huggingface_hub is not installed (pip install 'sjepa[hub]')") from None
    return huggingface_hub


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns errors of the library and of the network into one line."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _LIBRARIES and not isinstance(error, OSError | ValueError):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what}: {first}") from None
