"""Benchmark results, printed as a table and, with --json, as one JSON record on the last line."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One benchmark result. `ratio`: baseline ÷ ours (`speedup`, higher is better) or the given
    value (`value`, lower is better). Times are in seconds."""

    name: str
    ours: float
    baseline: float
    ratio: float
    target: float
    met: bool

    @staticmethod
    def speedup(name: str, ours: float, baseline: float, target: float) -> Row:
        return Row(name, ours, baseline, baseline / ours, target, baseline / ours >= target)

    @staticmethod
    def value(name: str, ours: float, baseline: float, value: float, target: float) -> Row:
        return Row(name, ours, baseline, value, target, value <= target)


def median_seconds(work: Callable[[], object], runs: int = 3) -> float:
    """Median wall time of several runs."""
    return statistics.median(seconds(work) for _ in range(runs))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(measure: Callable[[], list[Row]], description: str, *, quick: Callable[[], list[Row]] | None = None) -> None:
    """Parses --json and --quick (`quick`: a shorter measurement, if there is one), measures and
    prints."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON record as the last line")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    options = parser.parse_args()
    rows = quick() if options.quick and quick else measure()
    print_rows(rows)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def print_rows(rows: list[Row]) -> None:
    """Prints one line per row."""
    print(f"{'name':<20}{'ours':>12}{'baseline':>12}{'ratio':>9}{'target':>9}  met")
    for row in rows:
        met = "yes" if row.met else "no"
        print(f"{row.name:<20}{row.ours:>12.4g}{row.baseline:>12.4g}{row.ratio:>9.3g}{row.target:>9.3g}  {met}")
