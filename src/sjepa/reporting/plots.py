"""Pictures of a history: train against validation over epochs, phases marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # no screen needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sjepa.core.files import atomic_path

Row = dict[str, Any]

_TRAIN, _VALIDATION = "#4477aa", "#cc6677"
_PHASES = {1: "#eef3f8", 2: "#f8f1ea"}


class Curve(NamedTuple):
    """A history column (without its train_/val_ prefix), its title and the label of its axis."""

    name: str
    title: str
    axis: str


METRICS = (
    Curve("loss", "Loss", "KL over the frames in the loss (nats)"),
    Curve("kl", "KL to the soft targets", "KL over masked frames (nats)"),
    Curve("top1", "Agreement of the likeliest component", "share of masked frames"),
    Curve("entropy_bits", "Entropy of the predictions", "entropy over masked frames (bits)"),
)


JUDGED = (
    Curve("val_pitch_match", "Frames found again at another pitch", "share of validation frames"),
    Curve("val_pnmi", "What units tell of phones", "mutual information over entropy of phones"),
    Curve("val_frame_phones", "Phones of frames, linear probe", "share of validation frames"),
)

LAYERS = (
    Curve("erank", "Effective rank of each layer's features", "effective rank (2,000 frames)"),
    Curve("spread", "Spread of each layer's features", "distance from the mean over size"),
)


def draw_history(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws every curve of a history as `history_<name>.jpg`; the files written."""
    if not rows:
        return []
    written = [_draw_metric(rows, curve, folder) for curve in METRICS]
    written.append(_draw_single(rows, Curve("lr", "Learning rate", "learning rate at the epoch's end"), folder))
    written.append(
        _draw_single(rows, Curve("clusters_used", "Components in use", "perplexity of the mean target"), folder)
    )
    written.append(_draw_single(rows, Curve("gradient_norm", "Gradient norm", "mean norm before clipping"), folder))
    for curve in JUDGED:
        if any(curve.name in row for row in rows):
            written.append(_draw_single(rows, curve, folder, from_zero=False))
    for curve in LAYERS:
        written.append(draw_layers(rows, curve, folder / f"history_{curve.name}.jpg"))
    return written


def _draw_metric(rows: Sequence[Row], curve: Curve, folder: Path) -> Path:
    figure, axes = _axes(rows, curve)
    epochs = [row["epoch"] for row in rows]
    for part, colour, label in (("train", _TRAIN, "train"), ("val", _VALIDATION, "validation")):
        values = [row[f"{part}_{curve.name}"] for row in rows]
        axes.plot(epochs, values, color=colour, label=f"{label}: {_last(values)}", marker=".", markersize=4)
    if curve.name == "entropy_bits":
        targets = [_value(row, "val_target_entropy_bits") for row in rows]
        axes.plot(epochs, targets, color=_VALIDATION, linestyle="--", label=f"targets, validation: {_last(targets)}")
    axes.legend(frameon=False)
    return save_figure(figure, folder / f"history_{curve.name}.jpg")


def _draw_single(rows: Sequence[Row], curve: Curve, folder: Path, *, from_zero: bool = True) -> Path:
    figure, axes = _axes(rows, curve)
    values = [_value(row, curve.name) for row in rows]
    axes.plot([row["epoch"] for row in rows], values, color=_TRAIN, marker=".", markersize=4)
    if from_zero:
        axes.set_ylim(bottom=0)
    return save_figure(figure, folder / f"history_{curve.name}.jpg")


def draw_layers(rows: Sequence[Row], curve: Curve, path: Path) -> Path:
    """One curve per layer."""
    figure, axes = _axes(rows, curve)
    colours = matplotlib.colormaps["viridis"]
    epochs = [row["epoch"] for row in rows]
    layers = sorted(int(name.rpartition("_")[2]) for name in rows[-1] if name.startswith(f"{curve.name}_"))
    for layer in layers:
        colour = colours(layer / max(1, len(layers) - 1) * 0.9)
        values = [_value(row, f"{curve.name}_{layer}") for row in rows]
        axes.plot(epochs, values, color=colour, label=f"layer {layer}: {_last(values)}", marker=".", markersize=4)
        if (
            curve.name == "erank"
        ):  # and, dashed, the smoothed score on the EMA encoder that the target layer is chosen by
            axes.plot(epochs, [_value(row, f"layer_score_{layer}") for row in rows], color=colour, linestyle="--")
    axes.set_ylim(bottom=0)
    if curve.name == "erank":
        _name_target_layers(axes, rows)
    axes.legend(frameon=False)
    return save_figure(figure, path)


def _name_target_layers(axes: Axes, rows: Sequence[Row]) -> None:
    """Says which layer targets come from, where that changes."""
    before: Any = ""
    for row in rows:
        layer = row.get("active_layer", "")
        if layer not in ("", before):
            axes.axvline(row["epoch"], color="#999999", linewidth=0.8, linestyle=":")
            is_late = row["epoch"] > (rows[0]["epoch"] + 2 * rows[-1]["epoch"]) / 3  # then the text goes to the left
            axes.text(
                row["epoch"],
                0.02,
                f" targets: layer {layer} ",
                transform=axes.get_xaxis_transform(),
                ha="right" if is_late else "left",
                fontsize=8,
                color="#555555",
            )
        before = layer
    if "layer_score_0" in rows[-1]:
        axes.plot([], [], color="#555555", linestyle="--", label="smoothed, EMA encoder")


def _value(row: Row, name: str) -> float:
    value = row.get(name, "")
    return math.nan if value == "" else float(value)


def _axes(rows: Sequence[Row], curve: Curve) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{curve.title} · {rows[-1]['audio_hours']:.2f} h of audio seen", loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_ylabel(curve.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _shade_phases(axes, rows)
    return figure, axes


def _shade_phases(axes: Axes, rows: Sequence[Row]) -> None:
    """A band of colour and a name for every stretch of epochs in one phase."""
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


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a picture whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="jpg", dpi=130, pil_kwargs={"quality": 90})
    return path
