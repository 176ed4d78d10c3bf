"""Interface between the training loop and a system. B batch, S samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sjepa.core.learner import Learner
from sjepa.dataset.batch import Batch
from sjepa.training.checkpoint import Stateful
from sjepa.training.clock import Clock
from sjepa.training.figures import Figure
from sjepa.training.schedule import Stage


class Interrupted(Exception):
    """A signal stopped the run; its state was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Update(NamedTuple):
    """Result of one update. `finite` is False if loss or gradient were not finite; the update is
    then skipped. `samples` is the sum over all ranks, `clips` the names of this rank's clips;
    `news`: some rank has something to report."""

    finite: bool
    gradient_norm: float
    samples: int
    clips: tuple[str, ...]
    news: bool = False

    @property
    def made(self) -> bool:
        """Whether the weights were updated."""
        return self.finite and self.samples > 0


class Reading(NamedTuple):
    """Metrics by name, and the signs of collapse they show, one text each."""

    figures: Mapping[str, float]
    signs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Metrics by name, signs of collapse, and further history columns of this epoch: `columns`
    in front, `details` at the end."""

    figures: Mapping[str, float]
    signs: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A system during training. It owns networks, losses and optimisers; the training loop owns
    run position, data and checkpoints."""

    @property
    def figures(self) -> Sequence[Figure]:
        """The metrics it reports."""
        ...

    @property
    def stage(self) -> Stage:
        """The current stage."""
        ...

    @property
    def learners(self) -> Sequence[Learner[Any]]:
        """The networks in training."""
        ...

    @property
    def state(self) -> Mapping[str, Stateful]:
        """Everything saved in a checkpoint, by name."""
        ...

    def enter(self, stage: Stage, *, pause: Callable[[], None], best_stays: bool) -> None:
        """Switches to `stage`. `pause` is called repeatedly before any state changes and may
        raise Interrupted. `best_stays`: on a new phase, keep the best weights so far as the
        best."""
        ...

    def prepare(self, step: int) -> bool:
        """Runs the work due before update `step`; returns whether metrics are no longer
        comparable with earlier ones."""
        ...

    def update(self, window: Sequence[Batch], *, step: int, rate: float, news: bool) -> Update:
        """One update on this rank's micro-batches at learning rate `rate`. All ranks pass the
        same number of micro-batches, some of which may be empty. `news`: this rank has something
        to report to the others."""
        ...

    def recent(self) -> Reading:
        """Training metrics since the last call; they are also added to those of the epoch."""
        ...

    def epoch(self) -> Reading:
        """Training metrics of the epoch so far."""
        ...

    def restart_epoch(self) -> None:
        """Resets the metrics of the epoch."""
        ...

    def validate(
        self, batches: Iterable[Batch], *, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> Validation:
        """Metrics over all batches, in evaluation mode. `pause` is called before every batch and
        may raise."""
        ...

    def keep_weights(self, clock: Clock, validation: Validation, *, is_best: bool) -> None:
        """Saves the weights as `last.pt` and, if `is_best`, as `best.pt`."""
        ...

    def summary(self, train: Mapping[str, float], validation: Validation) -> str:
        """The metrics of an epoch as one line for the terminal."""
        ...

    def rehearse(self, batch: Batch, stage: Stage) -> None:
        """Forward and backward passes over a micro-batch as in `stage`, without an update: only
        gradients change. Synchronises the device."""
        ...
