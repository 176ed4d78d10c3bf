"""Probe scores and their confidence intervals. S speakers."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sjepa.core.files import write_csv
from sjepa.core.random import generator

_DRAWS = 1000
_CONFIDENCE = 0.95
_FEWEST_SPEAKERS = 3

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class BySpeaker:
    """A metric as a function of speaker weights [S]; `present_S`: speakers with data."""

    present_S: NDArray[np.bool_]
    figure: Callable[[Weights], float]

    @staticmethod
    def ratio(part_N: Sequence[float], whole_N: Sequence[float], speaker_N: NDArray[np.int64], size: int) -> BySpeaker:
        """The ratio sum(`part_N`) / sum(`whole_N`); `speaker_N`: speaker index of each example,
        below `size`."""
        part_S = np.bincount(speaker_N, np.asarray(part_N, float), minlength=size)
        whole_S = np.bincount(speaker_N, np.asarray(whole_N, float), minlength=size)

        def figure(weight_S: Weights) -> float:
            whole = float(weight_S @ whole_S)
            return float(weight_S @ part_S) / whole if whole else float("nan")

        return BySpeaker(whole_S > 0, figure)


@dataclass(frozen=True)
class Score:
    """Result of one probe on one split: metric name → value, number of training and test
    examples, and, where speakers are known, each metric by speaker."""

    values: dict[str, float]
    train: int
    test: int
    by_speaker: dict[str, BySpeaker] = field(default_factory=dict, compare=False)


def score(values: dict[str, tuple[float, BySpeaker | None]], train: int, test: int) -> Score:
    by_speaker = {name: figure for name, (_, figure) in values.items() if figure is not None}
    return Score({name: value for name, (value, _) in values.items()}, train, test, by_speaker)


class Probed(NamedTuple):
    """The name of a probe, its score in every split, and chance (NaN where there is none)."""

    probe: str
    scores: Sequence[Score]
    chance: float


class ProbeRow(NamedTuple):
    """A row of probes.csv. `deviation`: sample standard deviation (n − 1) over splits, NaN for a
    single one; `chance`: accuracy of predicting the most frequent training class, NaN without
    classes; `low`, `high`: 95 % confidence interval by bootstrap over speakers, NaN if speakers
    are unknown."""

    task: str
    probe: str
    metric: str
    features: str
    layer: str
    mean: float
    deviation: float
    splits: int
    train: int
    test: int
    chance: float
    low: float
    high: float


def rows_of(task: str, probed: Probed, features: str, layer: str, *, seed: int) -> list[ProbeRow]:
    """One row per metric, over the splits."""
    probe, scores, chance = probed
    rows = []
    for metric in scores[0].values:
        values = [score.values[metric] for score in scores]
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        low, high = interval([score.by_speaker.get(metric) for score in scores], seed=seed)
        rows.append(
            ProbeRow(
                task,
                probe,
                metric,
                features,
                layer,
                statistics.fmean(values),
                deviation,
                len(values),
                scores[0].train,
                scores[0].test,
                chance,
                low,
                high,
            )
        )
    return rows


def interval(parts: Sequence[BySpeaker | None], *, seed: int) -> tuple[float, float]:
    """95 % confidence interval of the mean over splits, by bootstrap over speakers (Efron 1979);
    NaN for fewer than three speakers."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return float("nan"), float("nan")
    present = np.flatnonzero(np.any([part.present_S for part in known], axis=0))
    if len(present) < _FEWEST_SPEAKERS:
        return float("nan"), float("nan")
    draws, weight_S = generator(seed, "bootstrap"), np.zeros(len(known[0].present_S))
    found = []
    for _ in range(_DRAWS):
        weight_S[present] = draws.multinomial(len(present), np.full(len(present), 1 / len(present)))
        found.append(np.mean([part.figure(weight_S) for part in known]))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)


def write_rows(path: Path, rows: Sequence[ProbeRow]) -> None:
    """Writes probes.csv."""
    texts = [[f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows]
    write_csv(path, ProbeRow._fields, [["" if value == "nan" else value for value in row] for row in texts])


def read_rows(path: Path) -> list[ProbeRow]:
    """The rows of a probes.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [ProbeRow(*(_value(name, row[name]) for name in ProbeRow._fields)) for row in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    if name in ("splits", "train", "test"):
        return int(text)
    return text if name in ("task", "probe", "metric", "features", "layer") else float(text or "nan")
