"""`evalsjepa compare`: curves, results and probes of several runs in one page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import yaml

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.entrypoints.systems import SYSTEMS
from sjepa.reporting.history import Row, read_history
from sjepa.reporting.page import page, paragraph, plots, table
from sjepa.reporting.plots import overlay, svg
from sjepa.reporting.run_dir import RunDir, existing_runs
from sjepa.reporting.run_page import known_values
from sjepa.training.figures import Figure
from sjepa.training.report import Section


def compare(folders: Sequence[Path], out: Path) -> int:
    """Writes `out`. `folders`: runs, as runs/NAME (its newest training run) or runs/NAME/train2.
    Returns the exit code; raises UserError if a folder is no run."""
    if len(folders) < 2:
        raise UserError("compare: name two or more run folders (runs/NAME or runs/NAME/train)")
    runs = {name: run for name, run in zip(_names(folders), map(_run, folders), strict=True)}
    histories = {name: read_history(run.history) for name, run in runs.items()}
    sections = [Section("Runs", _overview(runs, histories)), Section("Curves", _curves(histories))]
    results = {name: known_values(run) for name, run in runs.items()}
    if any(results.values()):
        sections.append(Section("Results", _results(results)))
    probes = {name: _probes(run) for name, run in runs.items()}
    if any(probes.values()):
        sections.append(Section("Probes", _probe_table(probes)))
    write_text(out, page("Comparison of runs", ", ".join(runs), sections))
    print(f"written to {out}")
    return 0


def _run(folder: Path) -> RunDir:
    """The run of a folder."""
    newest = existing_runs(folder.parent, folder.name, "train")
    for run in (RunDir(folder), *reversed(newest)):
        if run.history.exists():
            return run
    raise UserError(f"compare: {folder} is no run: neither history.csv nor train/history.csv is in it")


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders without the parts that all share."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("compare: the same run is named twice")
    shared = 0
    while len({own[shared : shared + 1] for own in parts}) == 1:
        shared += 1
    return ["/".join(own[shared:]) or own[-1] for own in parts]


def _overview(runs: dict[str, RunDir], histories: dict[str, list[Row]]) -> str:
    names = ("run", "folder", "epochs", "hours heard", "minutes")
    rows = [
        (
            name,
            run.root,
            len(own),
            f"{own[-1].get('audio_hours', 0):.2f}",
            f"{sum(row.get('seconds', 0) for row in own) / 60:.1f}",
        )
        for (name, run), own in zip(runs.items(), histories.values(), strict=True)
        if own
    ]
    return table(names, rows)


def _curves(histories: dict[str, list[Row]]) -> str:
    figures: dict[str, Figure] = {}
    for system in SYSTEMS.values():
        for figure in system.figures:
            figures.setdefault(figure.name, figure)
    drawn = [
        overlay(histories, figure)
        for figure in figures.values()
        if figure.where in ("both", "validation") and not figure.beside
    ]
    note = "Values of runs with other targets (another K, another phase) are not comparable."
    return paragraph(note) + plots((svg(picture), "") for picture in drawn if picture is not None)


def _results(results: dict[str, dict[str, float]]) -> str:
    metrics = dict.fromkeys(metric for own in results.values() for metric in own)
    rows = [[metric, *(_shown(own.get(metric)) for own in results.values())] for metric in metrics]
    return paragraph("The best weights of each run on its test set.") + table(["metric", *results], rows)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _probes(run: RunDir) -> dict[tuple[str, ...], str]:
    """The newest probes of a run's weights: (task, probe, metric, features, layer) → mean ±
    deviation."""
    for evaluation in reversed(existing_runs(run.root.parent.parent, run.root.parent.name, "eval")):
        path = evaluation.root / "probes.csv"
        if path.exists() and _is_of(evaluation, run):
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            keys = ("task", "probe", "metric", "features", "layer")
            return {tuple(row[key] for key in keys): _score(row) for row in rows}
    return {}


def _is_of(evaluation: RunDir, run: RunDir) -> bool:
    """Whether weights of this run were evaluated, by the end of their path, which may be relative
    to another folder."""
    values = yaml.safe_load(evaluation.config.read_text(encoding="utf-8")) if evaluation.config.exists() else {}
    folder = Path(str(values.get("init_weights"))).parent.parent.parts
    return bool(folder) and run.root.resolve().parts[-len(folder) :] == folder


def _score(row: dict[str, str]) -> str:
    spread = f" ± {float(row['deviation']):.3f}" if row["deviation"] else ""
    return f"{float(row['mean']):.3f}{spread}"


def _probe_table(probes: dict[str, dict[tuple[str, ...], str]]) -> str:
    keys = dict.fromkeys(key for own in probes.values() for key in own)
    rows = [[*key, *(own.get(key, "") for own in probes.values())] for key in keys]
    return table(["task", "probe", "metric", "features", "layer", *probes], rows)
