"""history.csv: one row per epoch."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.metrics import Metrics
from sjepa.training.report import EpochResult

Row = dict[str, Any]


class History:
    """The rows so far; the file on disk always holds all of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def resume(self, epochs: int) -> None:
        """Takes the first `epochs` rows of an existing file; what came after belongs to a future that was undone."""
        if not self.path.exists():  # stopped inside the first epoch
            return
        try:
            self.rows = [row for row in read_history(self.path) if row["epoch"] < epochs]
        except UserError as error:
            raise UserError(f"{error}; bring it back or delete it to go on without its rows") from None

    def append(self, result: EpochResult) -> Row:
        """Adds an epoch and writes the file anew, whole or not at all."""
        self.rows.append(_row(result))
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: _text(value) for name, value in row.items()} for row in self.rows])
        write_text(self.path, text.getvalue())
        return self.rows[-1]


def read_history(path: Path) -> list[Row]:
    """The rows of a history file, numbers as numbers. Raises UserError if it is damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if not all(isinstance(row["epoch"], int) for row in rows):
            raise ValueError
        return rows
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise UserError(f"{path}: damaged") from None


def _row(result: EpochResult) -> Row:
    row: Row = {"epoch": result.epoch, "phase": result.stage.phase, "lr": result.learning_rate}
    for name in Metrics.NAMES:
        row[f"train_{name}"] = getattr(result.train, name)
        row[f"val_{name}"] = getattr(result.validation, name)
    layer = "" if result.targets.layer is None else result.targets.layer
    row |= {"clusters_used": result.validation.clusters_used, "active_layer": layer}
    row |= {f"erank_{layer}": rank for layer, rank in enumerate(result.effective_ranks)}
    return row | {
        "seconds": result.seconds,
        "audio_hours": result.audio_hours,
        "data_waiting": result.waiting,
        "skipped_updates": result.skipped_updates,
        "unreadable_clips": result.unreadable_clips,
        "gradient_norm": result.gradient_norm,
        "train_target_entropy_bits": result.train.target_entropy_bits,
        "val_target_entropy_bits": result.validation.target_entropy_bits,
        "reseeded": result.targets.reseeded,
        **{f"val_{name}": value for name, value in result.judged.items()},
        **{f"spread_{layer}": value for layer, value in enumerate(result.spreads)},
        **{f"layer_score_{layer}": score for layer, score in enumerate(result.targets.layer_scores)},
    }


def _text(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if math.isfinite(value) and value == int(value) and "." not in text and "e" not in text else value
