"""What the command that trains asks of a system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from sjepa.config.load import Schema
from sjepa.core.distributed import Engine
from sjepa.core.progress import Messages
from sjepa.dataset.loader import EpochLoader
from sjepa.training.feeding import Data
from sjepa.training.figures import Figure
from sjepa.training.report import Report
from sjepa.training.schedule import RunProgress, Schedule, Stage
from sjepa.training.task import Task


@dataclass(frozen=True)
class Prepared:
    """A run that was checked in every part and has written nothing yet. Not `fresh`: its state is still to be loaded.
    `stage` is the one it starts in."""

    config: Any
    engine: Engine
    data: Data
    loader: EpochLoader
    schedule: Schedule[Any]
    grad_accum: int
    stage: Stage
    fresh: bool


class Start(Protocol):
    """What a system begins with: its network, and what else it has read."""

    @property
    def network(self) -> nn.Module: ...


class System(Protocol):
    """A method with a configuration of its own. Every `config` is of the schema's root."""

    name: str

    @property
    def schema(self) -> Schema[Any]:
        """How its configuration is read."""
        ...

    @property
    def figures(self) -> Sequence[Figure]:
        """What it measures."""
        ...

    def plan(self, config: Any, steps_per_epoch: int, *, progress: RunProgress | None = None) -> Schedule[Any]:
        """The stages of a run; those that were entered already keep their start. Raises UserError."""
        ...

    def check(self, config: Any, data: Data, schedule: Schedule[Any]) -> None:
        """Raises UserError if data and plan do not fit each other."""
        ...

    def start(self, run: Prepared, *, note: Callable[[str], None]) -> Any:
        """Reads and builds what the run begins with. Raises UserError; writes nothing."""
        ...

    def describe(self, start: Any) -> str:
        """The network in words."""
        ...

    def memory_bytes(self, run: Prepared, start: Any) -> int:
        """An estimate for training."""
        ...

    def task(self, run: Prepared, start: Any, folder: Path, report: Report) -> Task:
        """The task at the start of the run's stage, which writes into the run's folder."""
        ...

    def best(self, config: Any) -> Figure:
        """The figure that chooses the best weights."""
        ...

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Warnings at the end of a run, from the rows of its history."""
        ...

    def results(self, run: Prepared, weights: Path, messages: Messages) -> dict[str, float]:
        """The figures of the whole test set."""
        ...
