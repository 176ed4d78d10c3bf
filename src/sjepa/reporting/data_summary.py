"""What a run was trained on, for its report: lengths, levels, dropped files; kept as data.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa.core.files import write_text
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.clips import Clips
from sjepa.reporting.page import paragraph, plots, table
from sjepa.reporting.plots import histogram, svg
from sjepa.training.data import ClipSet
from sjepa.training.feeding import Data
from sjepa.training.report import Section

_LEVEL_CLIPS, _LEVEL_SECONDS = 200, 10.0
_EXAMPLES, _MOST_REASONS = 3, 50
_NUMBER = re.compile(r"\d+(\.\d+)?")
_BINS = 30


def summarise(data: Data) -> dict[str, Any]:
    """The sets of a run as plain values. Decodes up to 200 training clips for their levels."""
    levels = _levels(data.train.clips)
    return {
        "train": _set(data.train),
        "test": _set(data.test),
        "validation_clips": len(data.validation),
        "level_dbfs": _histogram(levels),
    }


def _set(clip_set: ClipSet) -> dict[str, Any]:
    seconds_N = clip_set.clips.length_N / clip_set.clips.sample_rate
    dropped = _grouped(clip_set.dropped)
    return {
        "clips": len(seconds_N),
        "hours": float(seconds_N.sum() / 3600),
        "shortest_seconds": float(seconds_N.min()),
        "median_seconds": float(np.median(seconds_N)),
        "longest_seconds": float(seconds_N.max()),
        "seconds": _histogram(np.minimum(seconds_N, np.quantile(seconds_N, 0.99))),
        "dropped": dropped,
        "remarks": clip_set.remarks,
    }


def _grouped(dropped: Sequence[tuple[str, str]]) -> list[tuple[str, int, list[str]]]:
    """(reason, count, examples) of the most frequent reasons; those that differ in numbers alone
    are one, and the rest is a line of its own."""
    groups: dict[str, list[Any]] = {}
    for name, reason in dropped:
        own = groups.setdefault(_NUMBER.sub("0", reason), [reason, 0, []])
        own[1] += 1
        if len(own[2]) < _EXAMPLES:
            own[2].append(name)
    ordered = sorted(groups.values(), key=lambda group: -group[1])
    shown = [(reason, count, names) for reason, count, names in ordered[:_MOST_REASONS]]
    if rest := sum(count for _, count, _ in ordered[_MOST_REASONS:]):
        shown.append(("other reasons (the log names them)", rest, []))
    return shown


def _levels(clips: Clips) -> NDArray[np.float64]:
    """Root mean square of the first seconds of some clips, dB relative to full scale."""
    some = generator(0, "levels").permutation(len(clips))[:_LEVEL_CLIPS]
    found = []
    for position in sorted(some.tolist()):
        length = min(int(clips.length_N[position]), round(_LEVEL_SECONDS * clips.sample_rate))
        try:
            power = float(np.mean(np.square(clips.read(position, length=length), dtype=np.float64)))
        except DecodeError:
            continue
        found.append(10 * np.log10(max(power, 1e-12)))
    return np.array(found)


def _histogram(value_N: NDArray[np.float64]) -> dict[str, list[float]]:
    value_N = value_N.round(6)  # values that differ by rounding alone have no bins between them
    counts, edges = np.histogram(value_N, bins=_BINS) if len(value_N) else (np.zeros(1), np.zeros(2))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    write_text(path, json.dumps(summary, indent=1) + "\n")


def data_section(summary: dict[str, Any]) -> Section:
    """The section of a report."""
    names = ("", "clips", "hours", "shortest, s", "median, s", "longest, s", "dropped")
    rows = []
    for name in ("train", "test"):
        own = summary[name]
        lengths = [f"{own[f'{which}_seconds']:.2f}" for which in ("shortest", "median", "longest")]
        dropped = sum(count for _, count, _ in own["dropped"])
        rows.append((name, f"{own['clips']:,}", f"{own['hours']:.2f}", *lengths, f"{dropped:,}"))
    body = table(names, rows) + paragraph(f"Validation: {summary['validation_clips']:,} clips of the test set.")
    reasons = [
        (reason, count, ", ".join(examples))
        for name in ("train", "test")
        for reason, count, examples in summary[name]["dropped"]
    ]
    if reasons:
        body += "<h3>Dropped files</h3>" + table(("reason", "files", "for example"), reasons)
    remarks = [remark for name in ("train", "test") for remark in summary[name]["remarks"]]
    body += "".join(map(paragraph, dict.fromkeys(remarks)))
    drawn = [
        (histogram(summary["train"]["seconds"], "clip length (s)"), "Training clips by length."),
        (histogram(summary["level_dbfs"], "level (dBFS)"), "Level of training clips: mean power of up to 10 s."),
    ]
    return Section("Data", body + plots((svg(picture), caption) for picture, caption in drawn))
