"""Data sets of the Hugging Face `datasets` library: on the hub, saved in a folder, or Parquet. The package is optional."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import soundfile

from sjepa.core.errors import UserError
from sjepa.dataset.audio import DecodeError

PREFIX = "hf://"


@dataclass(frozen=True)
class HubOptions:
    """One split of a data set, by name or path, and where its rows have what. Dots lead into nested fields."""

    spec: str = ""
    split: str = "train"
    config: str | None = None
    audio_field: str = "audio"
    speaker_field: str | None = None
    duration_field: str | None = None

    def of(self, address: str) -> HubOptions:
        """For `hf://name?split=test`: a question mark sets single options. Raises UserError if it sets others."""
        spec, _, query = address.removeprefix(PREFIX).partition("?")
        chosen = dict(parse_qsl(query, keep_blank_values=True))
        wrong = set(chosen) - {"split", "config", "audio_field", "speaker_field", "duration_field"}
        if wrong or not spec:
            raise UserError(f"{address}: not hf://NAME?split=…&config=…&audio_field=… ({', '.join(sorted(wrong))})")
        return replace(self, spec=spec, **chosen)

    @property
    def path(self) -> Path:
        return Path(self.spec).expanduser()


@lru_cache(maxsize=8)
def hub_rows(options: HubOptions) -> HubRows:
    """Opened once in each process."""
    return HubRows(options)


def library() -> Any:
    """The package. Raises UserError without it."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf:// needs the package datasets: pip install 'sjepa[hf]'") from None
    return datasets


class HubRows:
    """The rows of one split: audio as it is stored, never decoded by the library."""

    def __init__(self, options: HubOptions) -> None:
        """Raises UserError if there is no such data set, split or field."""
        self._options, rows = options, _load(options)
        fields = [field for field in (options.audio_field, options.speaker_field, options.duration_field) if field]
        for field in fields:
            if not _has(rows.features, field):
                there = ", ".join(_leaves(rows.features))
                raise UserError(f"dataset.hf: {PREFIX}{options.spec} has no field {field} (it has {there})")
        rows = rows.select_columns(sorted({field.split(".")[0] for field in fields}))
        self._rows = rows.cast(_undecoded(rows.features))
        self._labels = {"speaker": options.speaker_field, "duration": options.duration_field}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Another one means that the rows changed."""
        return {"rows": len(self._rows), "hash": self._rows._fingerprint}

    def labels(self, row: int) -> dict[str, Any]:
        fields = {name: field for name, field in self._labels.items() if field}
        if not fields:
            return {}
        values = self._rows.select_columns(sorted({field.split(".")[0] for field in fields.values()}))[row]
        return {name: _dotted(values, field) for name, field in fields.items()}

    def audio(self, row: int) -> BinaryIO:
        """A seekable file of one row's audio. Raises DecodeError."""
        field = self._options.audio_field
        return audio_file(_dotted(self._rows.select_columns(field.split(".")[0])[row], field))


def audio_file(value: Any) -> BinaryIO:
    """What the library keeps of audio as a file: its bytes, a path or samples. Raises DecodeError."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return io.BytesIO(value["bytes"])
        if value.get("array") is not None and value.get("sampling_rate"):
            file = io.BytesIO()
            soundfile.write(file, value["array"], int(value["sampling_rate"]), format="WAV", subtype="FLOAT")
            file.seek(0)
            return file
        value = value.get("path")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, str) and Path(value).is_file():
        return Path(value).open("rb")
    raise DecodeError("no audio in this row" if value is None else f"neither audio nor a file ({str(value)[:60]!r})")


def _load(options: HubOptions) -> Any:
    datasets, path = library(), options.path
    datasets.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = datasets.load_from_disk(str(path))
            return saved[options.split] if isinstance(saved, dict) else saved
        if path.is_file():
            return datasets.load_dataset("parquet", data_files={options.split: str(path)}, split=options.split)
        name = str(path) if path.exists() else options.spec
        return datasets.load_dataset(name, options.config, split=options.split)
    except UserError:
        raise
    except Exception as error:  # the library and what it downloads with raise anything
        raise UserError(f"{PREFIX}{options.spec}: {' '.join(str(error).split())[:300]}") from None


def _undecoded(features: Any) -> Any:
    """The same fields, audio left as it is stored."""
    datasets = library()
    if isinstance(features, dict):
        return type(features)({name: _undecoded(feature) for name, feature in features.items()})
    return datasets.Audio(decode=False) if isinstance(features, datasets.Audio) else features


def _has(features: Any, field: str) -> bool:
    first, _, rest = field.partition(".")
    return isinstance(features, dict) and first in features and (not rest or _has(features[first], rest))


def _leaves(features: Any) -> list[str]:
    found = []
    for name, feature in features.items():
        found += [f"{name}.{leaf}" for leaf in _leaves(feature)] if isinstance(feature, dict) else [name]
    return found


def _dotted(values: Any, field: str) -> Any:
    for name in field.split("."):
        values = None if values is None else values[name]
    return values
