"""Data sets of the optional Hugging Face `datasets` library: on the hub, saved to a folder, or
Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import soundfile

from sjepa.core.errors import UserError
from sjepa.core.random import generator, key
from sjepa.dataset.audio import DecodeError

PREFIX = "hf://"
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class HubOptions:
    """One split of a data set, by name or path, and its field names (dots: nested fields)."""

    spec: str = ""
    split: str = "train"
    config: str | None = None
    audio_field: str = "audio"
    speaker_field: str | None = None
    duration_field: str | None = None

    def of(self, address: str) -> HubOptions:
        """Options of an address such as `hf://name?split=test`, with these as defaults. Raises
        UserError for an unknown option."""
        spec, _, query = address.removeprefix(PREFIX).partition("?")
        chosen = dict(parse_qsl(query, keep_blank_values=True))
        wrong = set(chosen) - {"split", "config", "audio_field", "speaker_field", "duration_field"}
        if wrong or not spec:
            raise UserError(f"{address}: not hf://NAME?split=…&config=…&audio_field=… ({', '.join(sorted(wrong))})")
        return replace(self, spec=spec, **chosen)

    @property
    def path(self) -> Path:
        return Path(self.spec).expanduser()


@cache
def hub_rows(options: HubOptions) -> HubRows:
    """The rows of a split, opened once per process."""
    return HubRows(options)


def library() -> Any:
    """Imports the package. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf:// needs the package datasets: pip install 'sjepa[hf]'") from None
    return datasets


class HubRows:
    """The rows of one split, with encoded audio (not decoded by the library)."""

    def __init__(self, options: HubOptions) -> None:
        """Raises UserError if the data set, split or field does not exist."""
        self._audio_field = options.audio_field
        labels = {"speaker": options.speaker_field, "duration": options.duration_field}
        self._fields = {name: field for name, field in labels.items() if field}
        self._rows = _load(options)
        _check_fields(self._rows.features, [options.audio_field, *self._fields.values()], options)
        # Arrow tables: zero-copy, without decoding
        self._audio = self._rows.select_columns(_columns([options.audio_field])).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Changes when the rows change."""
        return {"rows": len(self._rows), "hash": self._rows._fingerprint}

    def labels(self) -> Iterator[dict[str, Any]]:
        """Labels of all rows, without reading the audio."""
        if not self._fields:
            yield from ({} for _ in range(len(self)))
            return
        table = self._rows.select_columns(_columns(self._fields.values())).with_format("arrow")
        for part in table.iter(batch_size=_ROWS_AT_ONCE):
            for row in part.to_pylist():
                yield {name: _dotted(row, field) for name, field in self._fields.items()}

    def audio(self, row: int) -> BinaryIO:
        """A seekable file of one row's audio. Raises DecodeError."""
        return audio_file(_dotted(self._audio[row].to_pylist()[0], self._audio_field))


def audio_file(value: Any) -> BinaryIO:
    """File object for an audio value of the library (bytes, path or samples). Raises
    DecodeError."""
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


class HubStream:
    """Streams the rows of one split with approximate shuffling: shuffled file order per epoch and a
    shuffle buffer. The order is a function of (seed, epoch, reader)."""

    def __init__(
        self, options: HubOptions, *, seed: int, buffer_rows: int, rows: int | None = None, most: int | None = None
    ) -> None:
        """`rows`: number of rows, if the data set does not state it; `most`: use only the first
        rows. Raises UserError if the data set, split or field does not exist or the length is
        unknown."""
        self.options, self._seed, self._buffer_rows = options, seed, buffer_rows
        stream = _load(options, streaming=True)
        stated = getattr((stream.info.splits or {}).get(options.split), "num_examples", None)
        known = rows or stated or None
        if known is None:
            raise UserError(f"dataset.hf.rows: {PREFIX}{options.spec} does not say how many rows it has; say it here")
        self.num_rows = known if most is None else min(known, most)
        self._stream = _audio_of_stream(stream if most is None else stream.take(most), options)

    def rows(self, epoch: int, *, reader: int = 0, readers: int = 1) -> Iterator[tuple[int, Any]]:
        """(row number, audio) of this reader's share of an epoch; `audio_file` opens the audio.
        Raises UserError if reading fails, e.g. on a lost connection."""
        shuffle = self._stream.shuffle
        # newer versions prefetch several files in threads, which delay the end of an epoch
        one_file = {"max_buffer_input_shards": 1} if "max_buffer_input_shards" in signature(shuffle).parameters else {}
        stream = shuffle(seed=key(self._seed, "stream") % (1 << 31), buffer_size=1, **one_file)
        stream.set_epoch(epoch)
        if readers > 1:
            from datasets.distributed import split_dataset_by_node

            stream = split_dataset_by_node(stream, reader, readers)
        rng = generator(self._seed, "stream", epoch, reader)
        buffer: list[tuple[int, Any]] = []
        try:
            for count, row in enumerate(stream):
                item = count * readers + reader, _dotted(row, self.options.audio_field)
                if len(buffer) < self._buffer_rows:
                    buffer.append(item)
                    continue
                place = int(rng.integers(len(buffer)))
                buffer[place], item = item, buffer[place]
                yield item
        except Exception as error:  # the library raises arbitrary exceptions
            raise _problem(self.options, error) from None
        yield from (buffer[int(place)] for place in rng.permutation(len(buffer)))


def _check_fields(features: Any, fields: Iterable[str], options: HubOptions) -> None:
    """Raises UserError if a field is missing."""
    for field in fields:
        if not _has(features, field):
            there = ", ".join(_leaves(features))
            raise UserError(f"dataset.hf: {PREFIX}{options.spec} has no field {field} (it has {there})")


def _audio_of_stream(stream: Any, options: HubOptions) -> Any:
    """The stream with the encoded audio column only. Raises UserError if the field is missing."""
    features = stream.features
    if features is None:  # inferred from the first rows
        features = stream._resolve_features().features
    _check_fields(features, [options.audio_field], options)
    columns = _columns([options.audio_field])
    kept = type(features)({name: features[name] for name in columns})
    return stream.select_columns(columns).cast(_undecoded(kept))


def _as_stream(rows: Any, split: str) -> Any:
    """A saved data set as a stream with a known number of rows."""
    datasets = library()
    stream = rows.to_iterable_dataset()
    stream.info.splits = datasets.SplitDict({split: datasets.SplitInfo(split, num_examples=len(rows))})
    return stream


def _load(options: HubOptions, *, streaming: bool = False) -> Any:
    datasets, path = library(), options.path
    datasets.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = datasets.load_from_disk(str(path))
            if isinstance(saved, dict) and options.split not in saved:
                raise ValueError(f"no split {options.split} (it has {', '.join(saved)})")
            if not isinstance(saved, dict) and options.split != str(saved.split or "train"):
                raise ValueError(f"no split {options.split} (it is {saved.split or 'one set without splits'})")
            saved = saved[options.split] if isinstance(saved, dict) else saved
            return _as_stream(saved, options.split) if streaming else saved
        name = "parquet" if path.is_file() else str(path) if path.exists() else options.spec
        files = {options.split: str(path)} if path.is_file() else None
        return datasets.load_dataset(name, options.config, data_files=files, split=options.split, streaming=streaming)
    except Exception as error:  # the library raises arbitrary exceptions
        raise _problem(options, error) from None


def _problem(options: HubOptions, error: Exception) -> UserError:
    return UserError(f"{PREFIX}{options.spec}: {' '.join(str(error).split())[:300] or type(error).__name__}")


def _columns(fields: Iterable[str]) -> list[str]:
    return sorted({field.split(".")[0] for field in fields})


def _undecoded(features: Any) -> Any:
    """The same features with audio decoding disabled."""
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
