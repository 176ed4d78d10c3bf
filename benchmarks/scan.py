"""Loading a scan cache of one million clips; baseline: json.loads of the same file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.table import Row, report, seconds
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.table import ClipTable

CLIPS = 1_000_000
MOST_SECONDS = 10.0


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train"
        data.mkdir()
        source = resolve_sources(str(data))[0]
        rng = np.random.default_rng(0)
        columns = {
            name: rng.integers(0, 1 << 40, CLIPS) for name in ("offset", "size", "first", "samples", "rate", "channels")
        }
        names = [f"speaker_{number % 5000:04d}/chapter_{number % 77}/clip_{number:07d}.flac" for number in range(CLIPS)]
        scan(source)  # creates an empty cache with the right path and fingerprint
        cache = Path(folder) / "train.cache.json"
        header = cache.read_text().splitlines()[0]
        body = {
            "names": names,
            **{name: column.tolist() for name, column in columns.items()},
            "labels": {},
            "dropped": [],
            "remarks": [],
        }
        cache.write_text(f"{header}\n{json.dumps(body, separators=(',', ':'))}]\n")
        tables: list[ClipTable] = []
        ours = seconds(lambda: tables.append(scan(source)))
        baseline = seconds(lambda: json.loads(cache.read_text()))
        assert len(tables[0]) == CLIPS
        print(f"{CLIPS:,} clips, {cache.stat().st_size / 1e6:.0f} MB, {ours:.2f} s")
        return [Row.value("cache_load", ours, baseline, ours, MOST_SECONDS)]


if __name__ == "__main__":
    report(measure, __doc__)
