"""runs/<run_name>/train, train2, …: a new folder for every run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sjepa.core.errors import UserError


@dataclass(frozen=True)
class RunDir:
    """Paths inside a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config_used.yaml"

    @property
    def history(self) -> Path:
        return self.root / "history.csv"

    @property
    def results(self) -> Path:
        return self.root / "results.csv"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.root / "plotes"  # spelling required by the specification

    @property
    def logs(self) -> Path:
        return self.root / "logs"


def existing_runs(runs_root: Path, run_name: str, purpose: str) -> list[RunDir]:
    """The run folders of a purpose ("train", "eval"), ordered by number."""
    pattern = re.compile(rf"^{re.escape(purpose)}(\d*)$")
    parent = runs_root / run_name
    found = [(int(match[1] or 1), path) for path in _folders(parent) if (match := pattern.match(path.name))]
    return [RunDir(path) for _, path in sorted(found)]


def new_run(runs_root: Path, run_name: str, purpose: str) -> RunDir:
    """Creates the next numbered folder. Raises UserError if that fails."""
    runs = existing_runs(runs_root, run_name, purpose)
    number = int(runs[-1].root.name[len(purpose) :] or 1) + 1 if runs else 1
    parent = runs_root / run_name
    while True:
        folder = parent / (purpose if number == 1 else f"{purpose}{number}")
        try:
            folder.mkdir(parents=True)
            return RunDir(folder)
        except FileExistsError:  # created by another process in the meantime
            if not parent.is_dir():
                raise UserError(f"runs_root: {parent} is not a folder") from None
            number += 1
        except OSError as error:
            raise UserError(f"runs_root: cannot make {folder} ({error.strerror})") from None


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
