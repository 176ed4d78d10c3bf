"""Interface between `trainsjepa` and a training method (system)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sjepa.config.load import Schema
from sjepa.core.distributed import Engine
from sjepa.core.progress import Messages
from sjepa.dataset.loader import EpochLoader
from sjepa.training.checkpoint import States
from sjepa.training.feeding import Data
from sjepa.training.figures import Figure
from sjepa.training.report import Report, Section
from sjepa.training.schedule import RunProgress, Schedule, Stage
from sjepa.training.task import Task


@dataclass(frozen=True)
class Prepared:
    """A validated run that has not written anything yet. `fresh` is False if a checkpoint is
    still to be loaded; `stage` is the stage it starts in."""

    config: Any
    engine: Engine
    data: Data
    loader: EpochLoader
    schedule: Schedule[Any]
    grad_accum: int
    stage: Stage
    fresh: bool


class Saved(NamedTuple):
    """The states of a run and, in a copy, its configuration."""

    states: States
    config: dict[str, Any]


class Copies(Protocol):
    """Copies of checkpoints in another layout, from which a run can be resumed as well."""

    def save(self, tag: str, states: States, task: Any) -> None:
        """`tag`: step<N> or final. Collective."""
        ...

    def newest(self) -> Path | None:
        """The one written last, if there is any. Raises UserError."""
        ...

    def read(self, path: Path) -> Saved:
        """Raises UserError."""
        ...


class System(Protocol):
    """A training method with its own configuration; every `config` is an instance of the
    schema's root."""

    name: str

    @property
    def schema(self) -> Schema[Any]:
        """Its configuration schema."""
        ...

    @property
    def figures(self) -> Sequence[Figure]:
        """The metrics it reports."""
        ...

    @property
    def step_log(self) -> str | None:
        """File name of a tab-separated log of the training metrics, in the folder of the run's
        name; None: without it."""
        ...

    @property
    def state(self) -> Sequence[str]:
        """The names of its task's state."""
        ...

    def owns(self, config: Any) -> bool:
        """Whether a run of this configuration is one of this system's."""
        ...

    def plan(self, config: Any, steps_per_epoch: int, *, progress: RunProgress | None = None) -> Schedule[Any]:
        """The stages of a run; stages already entered keep their start. Raises UserError."""
        ...

    def check(self, config: Any, data: Data, schedule: Schedule[Any]) -> None:
        """Raises UserError if data and schedule are incompatible."""
        ...

    def start(self, run: Prepared, *, note: Callable[[str], None]) -> Any:
        """Loads and builds the initial networks, for `describe`, `memory_bytes` and then `task`.
        Raises UserError; writes nothing."""
        ...

    def describe(self, start: Any) -> str:
        """Text description of the network."""
        ...

    def memory_bytes(self, run: Prepared, start: Any) -> int:
        """Estimated memory for training, in bytes."""
        ...

    def task(self, run: Prepared, start: Any, folder: Path, report: Report) -> Task:
        """The task at the start of the run's stage; it writes to `folder`, weights to
        `folder/weights`. Takes the networks out of `start`."""
        ...

    def copies(self, config: Any, folder: Path) -> Copies | None:
        """Copies of every checkpoint in another layout, in `folder`, that of the run's name; None:
        there are none."""
        ...

    def best(self, config: Any) -> Figure:
        """The metric that selects the best weights."""
        ...

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Warnings at the end of a run, from the rows of its history."""
        ...

    def results(self, run: Prepared, weights: Path, messages: Messages) -> dict[str, float]:
        """Metrics of the file `weights` on the full test set."""
        ...

    def sections(self, run: Prepared, weights: Path, messages: Messages) -> list[Section]:
        """More sections for the report of a run. Called on one rank alone."""
        ...
