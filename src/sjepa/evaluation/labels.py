"""Labels of clips, from a table or from manifest fields. T frames."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sjepa.core.errors import UserError
from sjepa.core.files import printable
from sjepa.dataset.clips import Clips

SILENCES = frozenset({"SIL", "sil", "SP", "sp", "SPN", "spn", "pau", "h#", "<sil>"})
SPEAKER = "speaker"  # column with the speaker of a clip
TEXT_COLUMNS = ("words", "text", "transcript")

_OVERLAP_SECONDS = 0.0015  # tolerance for rounded times
_LARGEST_FIELD = 1 << 30
_STRESS = re.compile(r"(?<=[A-Z])[012]$")  # stress digits of ARPAbet vowels
_SPAN = re.compile(r"(?P<phone>.+):(?P<start>[0-9.]+)-(?P<end>[0-9.]+)")

Row = Mapping[str, str]


class Span(NamedTuple):
    """A phone and its time within a clip, seconds."""

    phone: str
    start: float
    end: float


@dataclass(frozen=True)
class Labels:
    """One row per clip, in the order of the clips; empty for unlabelled clips. `source` is for
    messages."""

    rows: list[Row]
    source: str

    @property
    def columns(self) -> list[str]:
        return sorted({name for row in self.rows for name in row})

    def column(self, name: str) -> list[str]:
        """Each clip's value, "" where missing. Raises UserError if no clip has one."""
        values = [row.get(name, "") for row in self.rows]
        if not any(values):
            known = ", ".join(self.columns) or "none"
            raise UserError(f"{self.source}: no clip has a label {name!r} (labels there: {known})")
        return values

    @property
    def without(self) -> list[int]:
        """Indices of the clips without labels."""
        return [position for position, row in enumerate(self.rows) if not row]

    def has(self, name: str) -> bool:
        """Whether some clip has that label."""
        return any(row.get(name) for row in self.rows)

    @cached_property
    def spans(self) -> list[list[Span]]:
        """The phones of each clip and their times, from the column `times`. Raises UserError if it
        cannot be read."""
        try:
            return [spans_of(row.get("times", "")) for row in self.rows]
        except ValueError as error:
            raise UserError(f"{self.source}: column times: {error}") from None

    def text(self, position: int) -> str:
        """Transcript of a clip, "" if it has none."""
        row = self.rows[position]
        return next((row[name] for name in TEXT_COLUMNS if row.get(name)), "")


def read_labels(path: str | None, clips: Clips, *, split: str) -> Labels:
    """The labels of `clips` of the `split` "train" or "test".

    A table (.tsv, .csv, .jsonl) identifies clips by `path`, as in their archive or folder, with or
    without file extension. Rows whose column `split` is the other one are ignored, rows of this one
    take precedence. Without a table, the manifest fields are used. Raises UserError if the table
    cannot be read, matches no clip, or lists one twice.
    """
    if path is None:
        rows = [_texts(clips.labels(position)) for position in range(len(clips))]
        return Labels(rows, "evaluation.labels: null, and the manifest")
    exact: dict[str, Row] = {}
    bare: dict[str, Row] = {}
    other = {"train": "test", "test": "train"}[split]
    counted = [row for row in _read(Path(path)) if row.get("split") != other]
    for row in sorted(counted, key=lambda row: row.get("split") != split):
        name = _same_name(row["path"])
        first = exact.setdefault(name, row)
        if first is not row and first.get("split") == row.get("split"):
            raise UserError(
                f"evaluation.labels: {path} names {row['path']!r} twice, and no column split tells which counts"
            )
        bare.setdefault(_bare(name), row)
    names = [_same_name(clips.path(position)) for position in range(len(clips))]
    rows = [exact.get(name) or exact.get(_bare(name)) or bare.get(_bare(name)) or {} for name in names]
    if not any(rows):
        raise UserError(f"evaluation.labels: {path} names none of the clips (one is {names[0]!r})")
    return Labels(rows, f"evaluation.labels: {path}")


def _same_name(path: str) -> str:
    """Unicode-normalised name: some file systems decompose accents (NFD), most tables do not
    (NFC)."""
    return unicodedata.normalize("NFC", printable(path))


def words_of(transcript: str) -> list[list[str]]:
    """The phones of each word of a transcript; words are separated by |, stress digits are
    removed."""
    words = [[_STRESS.sub("", phone) for phone in word.split()] for word in transcript.split("|")]
    return [word for word in words if word]


def phones_of(transcript: str) -> list[str]:
    """The phones of a transcript, without word boundaries."""
    return [phone for word in words_of(transcript) for phone in word]


def spans_of(times: str) -> list[Span]:
    """`PHONE:start-end` (seconds), separated by spaces, in order. Raises ValueError for anything
    else."""
    spans = []
    for text in times.split():
        match = _SPAN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not PHONE:start-end in seconds")
        spans.append(Span(_STRESS.sub("", match["phone"]), float(match["start"]), float(match["end"])))
        if spans[-1].end <= spans[-1].start or (len(spans) > 1 and spans[-1].start < spans[-2].end - _OVERLAP_SECONDS):
            raise ValueError(f"{text!r} ends before it starts, or starts before the one before it ends")
    return spans


def times_of(spans: Sequence[Span]) -> str:
    """The inverse of `spans_of`."""
    return " ".join(f"{span.phone}:{span.start:.4f}-{span.end:.4f}" for span in spans)


def phones_at(spans: Sequence[Span], seconds_T: NDArray[np.float64]) -> list[str]:
    """The phone at each time, "" where there is none."""
    starts = np.array([span.start for span in spans])
    places = np.searchsorted(starts, seconds_T, side="right") - 1
    return [
        spans[place].phone if place >= 0 and time < spans[place].end else ""
        for place, time in zip(places.tolist(), seconds_T.tolist(), strict=True)
    ]


def _bare(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and "/" not in ending else name


def _texts(fields: Mapping[str, Any]) -> Row:
    """Values as strings; list items are joined by spaces."""
    found = {name: value for name, value in fields.items() if value is not None}
    return {
        str(name): (" ".join(map(str, value)) if isinstance(value, list) else str(value)).strip()
        for name, value in found.items()
    }


def _read(path: Path) -> list[Row]:
    csv.field_size_limit(_LARGEST_FIELD)  # `times` of long clips exceed the default
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                rows = [_texts(json.loads(line)) for line in file if line.strip()]
            elif path.suffix in (".tsv", ".csv"):
                tab = path.suffix == ".tsv"
                read = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.DictReader(file)
                rows = [_texts({name: value for name, value in row.items() if name is not None}) for row in read]
            else:
                raise UserError(f"evaluation.labels: {path} ends in neither .tsv nor .csv nor .jsonl")
    except FileNotFoundError:
        raise UserError(f"evaluation.labels: {path}: no such file") from None
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(f"evaluation.labels: {path}: cannot be read ({' '.join(str(error).split())})") from None
    if not rows or any("path" not in row for row in rows):
        raise UserError(f"evaluation.labels: {path}: needs a column path in every row")
    return rows
