"""report.html: a run in one file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.reporting.console import duration
from sjepa.reporting.data_summary import data_section
from sjepa.reporting.history import Row, read_history
from sjepa.reporting.page import bullets, folded, page, paragraph, plots, table
from sjepa.reporting.plots import history_pictures, svg
from sjepa.reporting.run_dir import RunDir
from sjepa.training.figures import Figure
from sjepa.training.report import Section

_WAITING = 0.1  # share of the time above which it is said


def write_run_page(
    path: Path,
    run: RunDir | None,
    figures: Sequence[Figure],
    *,
    name: str,
    more: Sequence[Section] = (),
) -> None:
    """Writes the report of a run to `path`: what its folder holds (warnings, data, history,
    results, configuration), and `more`. `run`: None where only `more` is known."""
    parts = [] if run is None else _sections_of_run(run, figures)
    about = f"Evaluation of {name}" if run is None else f"Training run {run.root}"
    write_text(path, page(name, about, [*parts, *more, *([] if run is None else _configuration(run))]))


def _sections_of_run(run: RunDir, figures: Sequence[Figure]) -> list[Section]:
    rows = history_rows(run)
    found = []
    if rows:
        lines = [*_progress(rows, figures), *_good(rows)]
        found.append(Section("Health", bullets(lines, bad=[*_warnings(run), *_bad(rows)])))
    if results := known_values(run):
        shown = [(metric, f"{value:.5g}") for metric, value in results.items()]
        about = paragraph("The best weights on the full test set, at the end of training.")
        found.append(Section("Results", about + table(("metric", "value"), shown)))
    if summary := known_data(run):
        found.append(data_section(summary))
    if rows:
        pictures = [(svg(picture), "") for _, picture in history_pictures(rows, figures)]
        found.append(Section("Curves", plots(pictures)))
    return found


def history_rows(run: RunDir) -> list[Row]:
    """The rows of its history; none if it is missing or damaged."""
    try:
        return read_history(run.history) if run.history.exists() else []
    except UserError:
        return []


def _warnings(run: RunDir) -> list[str]:
    """The warnings in the logs of a run, each once."""
    found: dict[str, None] = {}
    for path in sorted(run.logs.glob("*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            _, mark, text = line.partition("| WARNING  | ")
            if mark:
                found.setdefault(text)
    return list(found)


def _progress(rows: Sequence[Row], figures: Sequence[Figure]) -> list[str]:
    """Metrics that have a better direction, at the first and the last epoch of every phase; layers
    at the end."""
    lines = []
    for phase in dict.fromkeys(row["phase"] for row in rows):
        own = [row for row in rows if row["phase"] == phase]
        for figure in figures:
            first, last = (row.get(f"val_{figure.name}", "") for row in (own[0], own[-1]))
            if figure.better and not figure.beside and "" not in (first, last):
                begin, end = f"{float(first):{figure.shown}}", f"{float(last):{figure.shown}}{figure.unit}"
                moved = f"{'fell' if float(last) < float(first) else 'rose'} from {begin} to {end}"
                if len(own) == 1 or float(last) == float(first):
                    moved = f"{end} {'after one epoch' if len(own) == 1 else 'throughout'}"
                lines.append(f"{figure.title}: {moved} in phase {phase} (validation; {figure.better} is better)")
    for figure in figures:
        if figure.where == "layers" and not figure.beside and f"{figure.name}_0" in rows[-1]:
            names = [name for name in rows[-1] if name.rpartition("_")[0] == figure.name]
            values = ", ".join(f"{float(rows[-1][name]):.3g}" for name in names if rows[-1][name] != "")
            lines.append(f"{figure.title}, at the end: {values}")
    return lines


def _good(rows: Sequence[Row]) -> list[str]:
    seconds = _total(rows, "seconds")
    lines = [f"{len(rows)} epochs, {_total(rows[-1:], 'audio_hours'):.2f} h of audio heard, {duration(seconds)}"]
    if not _total(rows, "skipped_updates"):
        lines.append("every update had a finite loss and gradient")
    if not _total(rows, "unreadable_clips"):
        lines.append("every clip could be read")
    return lines


def _bad(rows: Sequence[Row]) -> list[str]:
    lines = []
    if skipped := _total(rows, "skipped_updates"):
        lines.append(f"{skipped:.0f} updates were skipped: their loss or gradient was not finite")
    if unreadable := _total(rows, "unreadable_clips"):
        lines.append(f"{unreadable:.0f} times a clip could not be read; the log names them")
    waiting = _total(rows, "data_waiting") / len(rows)
    if waiting > _WAITING:
        lines.append(f"{waiting:.0%} of the time went into waiting for data (dataset.num_workers, HDF5)")
    return lines


def _total(rows: Sequence[Row], name: str) -> float:
    return sum(float(row[name]) for row in rows if row.get(name, "") != "")


def _configuration(run: RunDir) -> list[Section]:
    if not run.config.exists():
        return []
    text = run.config.read_text(encoding="utf-8")
    return [Section("Configuration", folded("all keys, as -c takes them (config_used.yaml)", text))]


def run_of_weights(path: Path) -> RunDir | None:
    """The run whose folder `weights/` holds the file; None if it is none."""
    run = RunDir(path.resolve().parent.parent)
    return run if run.history.exists() and run.config.exists() else None


def known_data(run: RunDir) -> dict[str, Any] | None:
    """data.json; None without it, or if it is damaged."""
    try:
        found = json.loads((run.root / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def known_values(run: RunDir) -> dict[str, Any]:
    """results.csv as a mapping; empty without it."""
    if not run.results.exists():
        return {}
    with run.results.open(newline="", encoding="utf-8") as file:
        return {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
