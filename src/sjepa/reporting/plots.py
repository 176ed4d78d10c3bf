"""Plots of a history: training and validation curves over epochs, phases shaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
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
_DASHES = ("--", ":", "-.")
_PHASES = {1: "#eef3f8", 2: "#f8f1ea"}


_LEARNING_RATE = Figure(
    name="lr", title="Learning rate", axis="learning rate at the epoch's end", where="run", from_zero=True
)
_GRADIENT_NORM = Figure(
    name="gradient_norm", title="Gradient norm", axis="mean norm before clipping", where="run", from_zero=True
)


def draw_history(rows: Sequence[Row], figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Plots every metric of a history as `history_<name>.jpg`; returns the paths written."""
    if not rows:
        return []
    written = []
    for figure in [*figures, _LEARNING_RATE, _GRADIENT_NORM]:
        if figure.beside:
            continue
        beside = [other for other in figures if other.beside == figure.name]
        if figure.where == "layers":
            written.append(
                draw_layers(rows, figure, folder / f"history_{figure.name}.jpg", beside=next(iter(beside), None))
            )
        elif figure.where == "both":
            written.append(_draw_both(rows, figure, folder, beside))
        elif any(_column(figure) in row for row in rows):
            written.append(_draw_single(rows, figure, folder))
    return written


def _column(figure: Figure) -> str:
    return f"val_{figure.name}" if figure.where == "validation" else figure.name


def _draw_both(rows: Sequence[Row], figure: Figure, folder: Path, beside: Sequence[Figure]) -> Path:
    """Training and validation curves; those of `beside` are dashed, in order."""
    picture, axes = _axes(rows, figure)
    epochs = [row["epoch"] for row in rows]
    for part, colour, label in (("train", _TRAIN, "train"), ("val", _VALIDATION, "validation")):
        values = [row[f"{part}_{figure.name}"] for row in rows]
        axes.plot(epochs, values, color=colour, label=f"{label}: {_last(values)}", marker=".", markersize=4)
    for other, style in zip(beside, itertools.cycle(_DASHES), strict=False):
        values = [_value(row, f"val_{other.name}") for row in rows]
        label = f"{other.label}, validation: {_last(values)}"
        axes.plot(epochs, values, color=_VALIDATION, linestyle=style, label=label)
    if figure.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
    axes.legend(frameon=False)
    return save_figure(picture, folder / f"history_{figure.name}.jpg")


def _draw_single(rows: Sequence[Row], figure: Figure, folder: Path) -> Path:
    picture, axes = _axes(rows, figure)
    values = [_value(row, _column(figure)) for row in rows]
    axes.plot([row["epoch"] for row in rows], values, color=_TRAIN, marker=".", markersize=4)
    if figure.from_zero:
        axes.set_ylim(bottom=0)
    return save_figure(picture, folder / f"history_{_column(figure)}.jpg")


def draw_layers(rows: Sequence[Row], figure: Figure, path: Path, *, beside: Figure | None = None) -> Path:
    """One curve per layer; those of `beside` are dashed."""
    picture, axes = _axes(rows, figure)
    colours = matplotlib.colormaps["viridis"]
    epochs = [row["epoch"] for row in rows]
    layers = sorted(int(name.rpartition("_")[2]) for name in rows[-1] if name.startswith(f"{figure.name}_"))
    for layer in layers:
        colour = colours(layer / max(1, len(layers) - 1) * 0.9)
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
    return save_figure(picture, path)


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


def _axes(rows: Sequence[Row], figure: Figure) -> tuple[Picture, Axes]:
    picture = Picture(figsize=(7.2, 4.2), layout="constrained")
    axes = picture.subplots()
    axes.set_title(f"{figure.title} · {rows[-1]['audio_hours']:.2f} h of audio seen", loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_ylabel(figure.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _shade_phases(axes, rows)
    return picture, axes


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
