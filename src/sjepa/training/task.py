"""What the training loop asks of a system. B batch, S samples."""

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
    """A signal asked the run to stop; its state was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Update(NamedTuple):
    """What one update did. `finite` is False if loss or gradient were not, and then nothing moved. `samples` are those of
    all processes, `clips` the names of this one's; `news`: some process has something to tell the others."""

    finite: bool
    gradient_norm: float
    samples: int
    clips: tuple[str, ...]
    news: bool = False

    @property
    def made(self) -> bool:
        """Whether the weights moved."""
        return self.finite and self.samples > 0


class Reading(NamedTuple):
    """Figures by name, and the signs of a collapse that they show, one text each."""

    figures: Mapping[str, float]
    signs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Figures by name, the signs of a collapse, and what else the history keeps of this epoch, by column: `columns` stand
    in front, `details` at the end."""

    figures: Mapping[str, float]
    signs: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A system in training. It owns its networks, losses and optimisers; the loop owns time, data and files."""

    @property
    def figures(self) -> Sequence[Figure]:
        """What it measures."""
        ...

    @property
    def stage(self) -> Stage:
        """The stage it is in."""
        ...

    @property
    def learners(self) -> Sequence[Learner[Any]]:
        """The networks in training."""
        ...

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that must survive a restart, by name."""
        ...

    def enter(self, stage: Stage, *, pause: Callable[[], None], best_stays: bool) -> None:
        """Goes over to the next stage. `pause` is called now and then, as long as nothing has changed, and may raise
        Interrupted. `best_stays`: in a new phase, the best weights so far remain the best."""
        ...

    def prepare(self, step: int) -> bool:
        """Does what is due before update `step`; whether figures no longer compare with those before."""
        ...

    def update(self, window: Sequence[Batch], *, step: int, rate: float, news: bool) -> Update:
        """Makes one update from this process's micro-batches, at the learning rate `rate`; all processes give as many,
        some without clips. `news`: this process has something to tell the others."""
        ...

    def recent(self) -> Reading:
        """Training figures since the last call; they become part of the epoch's."""
        ...

    def epoch(self) -> Reading:
        """Training figures of the epoch so far."""
        ...

    def restart_epoch(self) -> None:
        """Figures of an epoch start anew."""
        ...

    def validate(
        self, batches: Iterable[Batch], *, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> Validation:
        """Figures over all batches, in evaluation mode. `pause` is called before every batch and may raise."""
        ...

    def keep_weights(self, clock: Clock, validation: Validation, *, is_best: bool) -> None:
        """Writes the weights, and if they are the best so far, says so on disk."""
        ...

    def summary(self, train: Mapping[str, float], validation: Validation) -> str:
        """An epoch's figures in one line of the terminal."""
        ...

    def rehearse(self, batch: Batch, stages: Sequence[Stage]) -> None:
        """Forward and backward passes over a micro-batch as each of `stages` makes them; nothing moves but gradients.
        Waits for the device."""
        ...
