"""Which weights an evaluation is of (evaluated.json in its folder), and the probes of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sjepa.core.files import write_text
from sjepa.evaluation.scores import ProbeRow, read_rows
from sjepa.reporting.run_dir import RunDir, existing_runs


def write_record(folder: Path, weights: Path, *, features: str) -> None:
    """`features`: the name of the encoder in probes.csv."""
    record = {"weights": str(weights), "digest": _digest(weights), "features": features}
    write_text(folder / "evaluated.json", json.dumps(record, indent=1) + "\n")


def probes_of(run: RunDir, *, weights: Path | None = None, features: str) -> list[ProbeRow]:
    """The newest probes of a run's weights (of any, if not given), among the evaluations beside the
    run; the encoder is called `features` in them. Weights are told by their content, so that runs
    may be moved."""
    files = [weights] if weights is not None else sorted(run.weights.glob("*.pt"))
    known = {_digest(path) for path in files if path.is_file()}
    for evaluation in reversed(existing_runs(run.root.parent.parent, run.root.parent.name, "eval")):
        table, record = evaluation.root / "probes.csv", _record(evaluation.root)
        if table.exists() and record.get("digest") in known:
            own = (record.get("features"), record.get("weights"))  # the path, if another encoder had the name
            return [row._replace(features=features) if row.features in own else row for row in read_rows(table)]
    return []


def _record(folder: Path) -> dict[str, str]:
    """Empty without evaluated.json, or if it is damaged."""
    try:
        found = json.loads((folder / "evaluated.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    """Of a file, or of the files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        if part.is_file():
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
