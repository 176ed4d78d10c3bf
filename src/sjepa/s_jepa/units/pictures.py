"""Plots of an evaluation: entropies, one utterance, components, probes. T frames, K components,
P phones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sjepa.core.frames import FrameGeometry
from sjepa.evaluation.labels import Span
from sjepa.evaluation.scores import ProbeRow
from sjepa.features.mel import log_mel
from sjepa.s_jepa.units.components import ComponentReport
from sjepa.s_jepa.units.readings import THRESHOLDS_BITS, EntropyHistogram

_MARKS = ("#999999", "#666666", "#333333")
_LABELLED_SECONDS = 0.06  # of a phone whose name has room
_SHOWN_POSTERIORS = 3
_TITLE_LETTERS = 110
_LEAST_BITS_SHOWN = 3.0


class Utterance(NamedTuple):
    """A clip to plot: waveform, posteriors [T, K] of the model, and words and phones if known."""

    name: str
    waveform: NDArray[np.float32]
    posterior_TK: NDArray[np.float32]
    words: str
    spans: Sequence[Span]
    geometry: FrameGeometry


def entropies_picture(readings: Sequence[tuple[str, EntropyHistogram]]) -> Figure:
    """Stacked entropy histograms, with the shares of frames above 0.5, 1 and 2 bits."""
    figure = Figure(figsize=(7.2, 2.9 * len(readings)), layout="constrained")
    for axes, (name, histogram) in zip(_column(figure, len(readings)), readings, strict=True):
        share = histogram.count_E / max(1, histogram.frames)
        edges = histogram.edges_bits
        used = int(np.flatnonzero(histogram.count_E).max(initial=0)) + 1
        last = max(edges[used], min(_LEAST_BITS_SHOWN, edges[-1]))
        axes.bar(edges[:-1], share, width=np.diff(edges), align="edge", color="#4477aa", linewidth=0)
        axes.set_xlim(0, last)
        marks = zip(THRESHOLDS_BITS, histogram.shares_above, _MARKS, (0.97, 0.88, 0.79), strict=True)
        for threshold, above, colour, height in marks:
            if threshold < last:
                axes.axvline(threshold, color=colour, linewidth=0.9, linestyle="--")
                place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 8}
                place["bbox"] = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
                axes.text(threshold, height, f" {above:.1%} above {threshold:g} bit", color=colour, **place)
        title = f"{name}: {histogram.mean_bits:.2f} bits on average over {histogram.frames:,} frames"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("share of frames")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("entropy of a frame's posterior (bits)")
    return figure


def utterance_picture(shown: Utterance) -> Figure:
    """Log-mel spectrogram, most likely component and top-3 posteriors on a shared time axis; phones
    and words on top."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    heights = (3.0, 0.5, 1.6)
    spectrum, strip, lines = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    rate = shown.geometry.sample_rate
    seconds, hop = len(shown.waveform) / rate, shown.geometry.hop_samples / rate
    first = (shown.geometry.receptive_field_samples - shown.geometry.hop_samples) / 2 / rate
    span = (first, first + hop * len(shown.posterior_TK))
    mel_MT = log_mel(shown.waveform, shown.geometry)
    spectrum.imshow(mel_MT, origin="lower", aspect="auto", cmap="magma", extent=(*span, 0, len(mel_MT)))
    spectrum.set_ylabel("mel band")
    title = f"{shown.name}{'  ·  ' if shown.words else ''}{shown.words}"
    title = title if len(title) <= _TITLE_LETTERS else title[: _TITLE_LETTERS - 1] + "…"
    spectrum.set_title(title, loc="left", fontsize=10, pad=18, parse_math=False)
    unit_T = shown.posterior_TK.argmax(1)
    _draw_strip(strip, unit_T, span, hop)
    best_TJ = -np.sort(-shown.posterior_TK, axis=1)[:, :_SHOWN_POSTERIORS]
    centres = span[0] + hop * (np.arange(len(unit_T)) + 0.5)
    colours = ("#4477aa", "#88aacc", "#cfdcea")
    labels = ("likeliest component", "second", "third")[: best_TJ.shape[1]]
    lines.stackplot(centres, best_TJ.T, colors=colours[: len(labels)], labels=labels, linewidth=0)
    lines.set_ylim(0, 1)
    lines.set_ylabel("posterior")
    lines.legend(loc="lower left", fontsize=7, ncols=len(labels), framealpha=0.8)
    lines.set_xlabel("seconds")
    lines.set_xlim(0, seconds)
    for phone in [span for span in shown.spans if span.start < seconds]:
        for axes in (spectrum, strip, lines):
            axes.axvline(phone.start, color="#ffffff" if axes is spectrum else "#555555", linewidth=0.4)
        if phone.end - phone.start < _LABELLED_SECONDS:
            continue
        middle = (phone.start + min(phone.end, seconds)) / 2
        name = spectrum.text(middle, len(mel_MT) * 1.01, phone.phone, ha="center", va="bottom", fontsize=7)
        name.set_parse_math(False)
        name.set_in_layout(False)
    return figure


def components_picture(report: ComponentReport) -> Figure:
    """Heat map of P(unit | phone), with units sorted by their most frequent phone
    (near-diagonal)."""
    used = np.flatnonzero(report.count_KP.sum(1))
    count_KP = report.count_KP[used]
    phone_P = np.flatnonzero(count_KP.sum(0))
    given_phone_KP = count_KP[:, phone_P] / count_KP[:, phone_P].sum(0)
    best_K = count_KP[:, phone_P].argmax(1)
    order = np.lexsort((-given_phone_KP.max(1), best_K))
    figure = Figure(figsize=(10, max(3.0, 0.19 * len(phone_P) + 1.2)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(given_phone_KP[order].T, aspect="auto", cmap="Blues", interpolation="nearest")
    axes.set_yticks(range(len(phone_P)), [report.phones[phone] for phone in phone_P], fontsize=7, parse_math=False)
    axes.set_xlabel(f"{len(used)} units, sorted by their most frequent phone")
    axes.set_title(f"P(unit | phone): purity {report.purity:.3f}, PNMI {report.pnmi:.3f}", loc="left", fontsize=10)
    figure.colorbar(image, ax=axes, pad=0.01)
    return figure


def probes_picture(rows: Sequence[ProbeRow]) -> Figure:
    """One panel per task, probe and metric; one bar per feature type, with standard deviation over
    splits."""
    panels = [(title, list(own)) for title, own in itertools.groupby(_by_panel(rows), key=lambda row: row[:3])]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    bars = max(len(own) for _, own in panels)
    figure = Figure(figsize=(2.2 + 2.8 * columns, lines * (0.9 + 0.3 * bars)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    names = list(dict.fromkeys(row.features for row in rows))
    colours = matplotlib.colormaps["tab10"]
    for axes, ((task, probe, metric), own) in zip(grid, panels, strict=False):
        own = own[::-1]
        errors = [0.0 if np.isnan(row.deviation) else row.deviation for row in own]
        labels = [row.features + (f", layer {row.layer}" if row.layer else "") for row in own]
        axes.barh(
            range(len(own)), [row.mean for row in own], xerr=errors, height=0.7,
            color=[colours(names.index(row.features) % 10) for row in own], error_kw={"linewidth": 0.8},
        )  # fmt: skip
        axes.set_yticks(range(len(own)), labels, fontsize=8, parse_math=False)
        for index, row in enumerate(own):
            axes.text(0.01, index, f" {row.mean:.3f}", va="center", fontsize=7, transform=axes.get_yaxis_transform())
        if not np.isnan(own[0].chance):
            axes.axvline(own[0].chance, color="#777777", linestyle=":", linewidth=1)
        better = "higher is better" if metric == "accuracy" else "lower is better"
        axes.set_title(f"{task}, {probe}\n{metric} ({better})", loc="left", fontsize=9, parse_math=False)
        axes.set_xlim(0, max(1.0, *(row.mean + error for row, error in zip(own, errors, strict=True))))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _by_panel(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    order = list(dict.fromkeys(row[:3] for row in rows))
    return sorted(rows, key=lambda row: order.index(row[:3]))


def _draw_strip(axes: Axes, unit_T: NDArray[np.int64], span: tuple[float, float], hop: float) -> None:
    """Colour strip of the most likely component, labelled where it lasts 4 frames or more."""
    colours = matplotlib.colormaps["tab20"]
    order = {unit: number for number, unit in enumerate(dict.fromkeys(unit_T.tolist()))}  # neighbours differ
    strip_TC = np.array([colours(order[unit] % colours.N)[:3] for unit in unit_T.tolist()])
    axes.imshow(strip_TC[None], aspect="auto", interpolation="nearest", extent=(*span, 0, 1))
    axes.set_yticks([])
    axes.set_ylabel("unit", rotation=0, ha="right", va="center")
    start = 0
    for unit, run in itertools.groupby(unit_T.tolist()):
        length = len(list(run))
        if length >= 4:
            style: dict[str, Any] = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.8}
            middle = span[0] + hop * (start + length / 2)
            axes.text(middle, 0.5, str(unit), ha="center", va="center", fontsize=6, bbox=style)
        start += length


def _column(figure: Figure, count: int) -> Sequence[Axes]:
    return list(np.atleast_1d(figure.subplots(count, 1)))
