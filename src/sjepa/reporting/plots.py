"""Plots of a history: training and validation curves over epochs, phases shaded."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator

from sjepa.core.files import atomic_path
from sjepa.training.figures import Figure

Row = dict[str, Any]

_TRAIN, _VALIDATION = "#4477aa", "#cc6677"
_SERIES = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
_WIDTH = 7.2  # inches
_DASHES = ("--", ":", "-.")
_PHASES = {1: "#eef3f8", 2: "#f8f1ea"}
# of a picture, and the variable of the page that replaces it
_PAGE_COLOURS = {
    "#000000": "--ink", "#333333": "--ink", "#555555": "--soft", "#666666": "--soft", "#777777": "--soft",
    "#999999": "--soft", "#dddddd": "--line", _TRAIN: "--one", _VALIDATION: "--two", "#228833": "--three",
    _PHASES[1]: "--first", _PHASES[2]: "--second", "#f4f4f4": "--card", "#ffffff": "--page",
}  # fmt: skip


_LEARNING_RATE = Figure(
    name="lr", title="Learning rate", axis="learning rate at the epoch's end", where="run", from_zero=True
)
_GRADIENT_NORM = Figure(
    name="gradient_norm", title="Gradient norm", axis="mean norm before clipping", where="run", from_zero=True
)


def draw_history(rows: Sequence[Row], figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Plots every metric of a history as `history_<name>.jpg`; returns the paths written."""
    return [save_figure(picture, folder / f"history_{name}.jpg") for name, picture in history_pictures(rows, figures)]


def history_pictures(rows: Sequence[Row], figures: Sequence[Figure]) -> Iterator[tuple[str, Picture]]:
    """A picture of every metric of a history, with its column's name."""
    for figure in [*figures, _LEARNING_RATE, _GRADIENT_NORM] if rows else []:
        if figure.beside:
            continue
        beside = [other for other in figures if other.beside == figure.name]
        if figure.where == "layers":
            yield figure.name, layers_picture(rows, figure, beside=next(iter(beside), None))
        elif figure.where == "both":
            if f"train_{figure.name}" in rows[-1]:
                yield figure.name, _both(rows, figure, beside)
        elif any(_column(figure) in row for row in rows):
            yield _column(figure), _single(rows, figure)


def overlay(runs: Mapping[str, Sequence[Row]], figure: Figure) -> Picture | None:
    """The validation curves of a metric in several runs, over hours of audio; None if no run has
    it."""
    column = f"val_{figure.name}" if figure.where in ("both", "validation") else figure.name
    shown = {name: rows for name, rows in runs.items() if any(row.get(column, "") != "" for row in rows)}
    if not shown:
        return None
    picture, axes = _blank(4.2)
    _dress(axes, f"{figure.title}, validation", "hours of audio heard", figure.axis)
    for (name, rows), colour in zip(shown.items(), itertools.cycle(_SERIES), strict=False):
        values = [_value(row, column) for row in rows]
        hours = [_value(row, "audio_hours") for row in rows]
        axes.plot(hours, values, color=colour, marker=".", markersize=4, label=f"{name}: {_last(values)}")
    legend = axes.legend(frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return picture


def _column(figure: Figure) -> str:
    return f"val_{figure.name}" if figure.where == "validation" else figure.name


def _both(rows: Sequence[Row], figure: Figure, beside: Sequence[Figure]) -> Picture:
    """Training and validation curves; those of `beside` are dashed, in order."""
    picture, axes = _axes(rows, figure)
    epochs = [row["epoch"] for row in rows]
    for part, colour, label in (("train", _TRAIN, "train"), ("val", _VALIDATION, "validation")):
        values = [_value(row, f"{part}_{figure.name}") for row in rows]
        axes.plot(epochs, values, color=colour, label=f"{label}: {_last(values)}", marker=".", markersize=4)
    for other, style in zip(beside, itertools.cycle(_DASHES), strict=False):
        values = [_value(row, f"val_{other.name}") for row in rows]
        label = f"{other.label}, validation: {_last(values)}"
        axes.plot(epochs, values, color=_VALIDATION, linestyle=style, label=label)
    if figure.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
    axes.legend(frameon=False)
    return picture


def _single(rows: Sequence[Row], figure: Figure) -> Picture:
    picture, axes = _axes(rows, figure)
    values = [_value(row, _column(figure)) for row in rows]
    axes.plot([row["epoch"] for row in rows], values, color=_TRAIN, marker=".", markersize=4)
    if figure.from_zero:
        axes.set_ylim(bottom=0)
    return picture


def layers_picture(rows: Sequence[Row], figure: Figure, *, beside: Figure | None = None) -> Picture:
    """One curve per layer; those of `beside` are dashed."""
    picture, axes = _axes(rows, figure)
    colours = matplotlib.colormaps["viridis"]
    epochs = [row["epoch"] for row in rows]
    layers = sorted(int(name.rpartition("_")[2]) for name in rows[-1] if name.startswith(f"{figure.name}_"))
    for layer in layers:
        colour = colours(0.3 + 0.55 * layer / max(1, len(layers) - 1))  # visible on light and dark pages
        values = [_value(row, f"{figure.name}_{layer}") for row in rows]
        axes.plot(epochs, values, color=colour, label=f"layer {layer}: {_last(values)}", marker=".", markersize=4)
        if beside is not None:
            axes.plot(epochs, [_value(row, f"{beside.name}_{layer}") for row in rows], color=colour, linestyle="--")
    axes.set_ylim(bottom=0)
    if figure.marks is not None:
        _mark_changes(axes, rows, *figure.marks)
    if beside is not None and f"{beside.name}_0" in rows[-1]:
        axes.plot([], [], color="#555555", linestyle="--", label=beside.label)
    axes.legend(frameon=False)
    return picture


def _mark_changes(axes: Axes, rows: Sequence[Row], column: str, text: str) -> None:
    """A dotted line with a text label wherever a column's value changes."""
    before: Any = ""
    for row in rows:
        value = row.get(column, "")
        if value not in ("", before):
            axes.axvline(row["epoch"], color="#999999", linewidth=0.8, linestyle=":")
            is_late = row["epoch"] > (rows[0]["epoch"] + 2 * rows[-1]["epoch"]) / 3  # then the text goes to the left
            axes.text(
                row["epoch"],
                0.02,
                f" {text.format(value)} ",
                transform=axes.get_xaxis_transform(),
                ha="right" if is_late else "left",
                fontsize=8,
                color="#555555",
            )
        before = value


def _value(row: Row, name: str) -> float:
    value = row.get(name, "")
    return math.nan if value == "" else float(value)


def _blank(height: float) -> tuple[Picture, Axes]:
    """Axes with fixed margins, in inches: to fit them to the text would double the time of
    drawing."""
    left, right, below, above = 0.98, 0.12, 0.55, 0.4
    picture = Picture(figsize=(_WIDTH, height))
    axes = picture.add_axes((left / _WIDTH, below / height, 1 - (left + right) / _WIDTH, 1 - (below + above) / height))
    return picture, axes


def _axes(rows: Sequence[Row], figure: Figure) -> tuple[Picture, Axes]:
    picture, axes = _blank(4.2)
    _dress(axes, f"{figure.title} · {_value(rows[-1], 'audio_hours'):.2f} h of audio seen", "epoch", figure.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _shade_phases(axes, rows)
    return picture, axes


def histogram(counted: Mapping[str, Sequence[float]], below: str) -> Picture:
    """Bars of `counts` between `edges`."""
    picture, axes = _blank(2.6)
    edges = list(counted["edges"])
    widths = [high - low for low, high in itertools.pairwise(edges)]
    axes.bar(edges[:-1], counted["counts"], width=widths, align="edge", color=_TRAIN, linewidth=0)
    _dress(axes, "", below, "clips")
    return picture


def _dress(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _shade_phases(axes: Axes, rows: Sequence[Row]) -> None:
    """Shades and labels each phase."""
    start = 0
    for index, row in enumerate(rows):
        if index + 1 < len(rows) and rows[index + 1]["phase"] == row["phase"]:
            continue
        low, high = rows[start]["epoch"] - 0.5, row["epoch"] + 0.5
        axes.axvspan(low, high, color=_PHASES.get(row["phase"], "#f4f4f4"), zorder=0, linewidth=0)
        axes.text(
            low,
            0.98,
            f" phase {row['phase']}",
            transform=axes.get_xaxis_transform(),
            va="top",
            fontsize=8,
            color="#777777",
        )
        start = index + 1
    axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)


def _last(values: Sequence[float]) -> str:
    return f"{values[-1]:.3g}"


def save_figure(picture: Picture, path: Path) -> Path:
    """Saves a plot atomically."""
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="jpg", dpi=130, pil_kwargs={"quality": 90})
    return path


def svg(picture: Picture) -> str:
    """The picture as an SVG element for a page (`reporting/page.py`), whose colours it takes."""
    text = io.StringIO()
    picture.patch.set_alpha(0.0)
    for axes in picture.axes:
        axes.patch.set_alpha(0.0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sjepa", "font.family": "sans-serif"}):
        picture.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    for colour, variable in _PAGE_COLOURS.items():
        found = found.replace(colour, f"var({variable})")
    return found
