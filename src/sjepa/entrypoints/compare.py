"""`evalsjepa compare`: curves, results and probes of several runs in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.entrypoints.evaluated import probes_of
from sjepa.entrypoints.systems import SYSTEMS
from sjepa.evaluation.scores import ProbeRow
from sjepa.reporting.history import Row, read_history
from sjepa.reporting.page import page, paragraph, plots, table
from sjepa.reporting.plots import overlay, svg
from sjepa.reporting.run_dir import RunDir, existing_runs
from sjepa.reporting.run_page import known_values
from sjepa.s_jepa.units.sections import probe_section
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
    probes = {name: probes_of(run, features=name) for name, run in runs.items()}
    if any(probes.values()):
        sections.append(probe_section(_merged(probes)))
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


def _merged(probes: dict[str, list[ProbeRow]]) -> list[ProbeRow]:
    """The rows of all runs: encoders by the name of their run, baselines once where they agree."""
    agreed: dict[tuple[str, ...], dict[str, float]] = {}
    for name, rows in probes.items():
        for row in rows:
            agreed.setdefault(row[:5], {})[name] = row.mean
    found: dict[tuple[str, ...], ProbeRow] = {}
    for name, rows in probes.items():
        for row in rows:
            same = row.features == name or len(set(agreed[row[:5]].values())) == 1
            own = row if same else row._replace(features=f"{row.features} ({name})")
            found.setdefault(own[:5], own)
    order = {panel: number for number, panel in enumerate(dict.fromkeys(key[:3] for key in found))}
    return sorted(found.values(), key=lambda row: order[row[:3]])
