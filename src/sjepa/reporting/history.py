"""history.csv: one row per epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.files import write_csv
from sjepa.training.figures import Figure
from sjepa.training.report import EpochResult

Row = dict[str, Any]


class History:
    """The rows so far; the file on disk is always complete."""

    def __init__(self, path: Path, figures: Sequence[Figure]) -> None:
        """`figures`: the metrics in the rows."""
        self.path, self._figures = path, figures
        self.rows: list[Row] = []

    def resume(self, epochs: int) -> None:
        """Loads the first `epochs` rows of an existing file; later rows are discarded."""
        if not self.path.exists():  # stopped inside the first epoch
            return
        try:
            self.rows = [row for row in read_history(self.path) if row["epoch"] < epochs]
        except UserError as error:
            raise UserError(f"{error}; restore it, or delete it to resume without its rows") from None

    def append(self, result: EpochResult) -> Row:
        """Adds an epoch and rewrites the file atomically."""
        self.rows.append(self._row(result))
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        write_csv(self.path, names, [[_text(row.get(name, "")) for name in names] for row in self.rows])
        return self.rows[-1]

    def _row(self, result: EpochResult) -> Row:
        row: Row = {"epoch": result.epoch, "phase": result.stage.phase, "lr": result.learning_rate}
        own = [figure for figure in self._figures if figure.where in ("both", "validation")]
        first = [figure for figure in own if figure.where == "both" and not figure.beside]
        for figure in first:
            row |= _values(figure, result)
        row |= {
            **result.columns,
            "seconds": result.seconds,
            "audio_hours": result.audio_hours,
            "data_waiting": result.waiting,
            "skipped_updates": result.skipped_updates,
            "unreadable_clips": result.unreadable_clips,
            "gradient_norm": result.gradient_norm,
        }
        for figure in own:
            row |= {} if figure in first else _values(figure, result)
        return row | dict(result.details)


def _values(figure: Figure, result: EpochResult) -> Row:
    """Training and validation values of a metric, where available."""
    parts = (
        {"val": result.validation}
        if figure.where == "validation"
        else {"train": result.train, "val": result.validation}
    )
    return {f"{part}_{figure.name}": found[figure.name] for part, found in parts.items() if figure.name in found}


def read_history(path: Path) -> list[Row]:
    """The rows of a history file, with numbers parsed. Raises UserError if it is damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if not all(isinstance(row["epoch"], int) for row in rows):
            raise ValueError
        return rows
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise UserError(f"{path}: damaged") from None


def _text(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if math.isfinite(value) and value == int(value) and "." not in text and "e" not in text else value
