"""What the loop is given: the components of a run, and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sjepa.config.schedule import Schedule
from sjepa.core.distributed import Engine
from sjepa.dataset.loader import EpochLoader, Loader
from sjepa.model import SJEPA
from sjepa.targets.base import Targets
from sjepa.training.checkpoint import Checkpoints, Stateful
from sjepa.training.keeper import WeightsFolder
from sjepa.training.step import StepSettings
from sjepa.training.transition import TargetMaker
from sjepa.training.validation import Judge


@dataclass(frozen=True)
class Plan:
    """The run's numbers: when what is due."""

    schedule: Schedule
    grad_accum: int
    processes: int
    log_every: int
    save_every_steps: int
    lr_kind: Literal["cosine", "constant"]
    lr_min_ratio: float

    @property
    def batches_per_update(self) -> int:
        """Micro-batches of all processes that make one update."""
        return self.grad_accum * self.processes


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `model` is `network` as the engine wrapped it; `build_optimizer` makes one for a network;
    `judges` look at the features of validation clips."""

    engine: Engine
    network: SJEPA
    model: Any
    optimizer: Any
    build_optimizer: Callable[[nn.Module], Any]
    targets: Targets
    maker: TargetMaker
    settings: StepSettings
    train: EpochLoader
    validation: Loader
    checkpoints: Checkpoints
    fingerprint: Stateful
    weights: WeightsFolder
    judges: tuple[Judge, ...] = ()


class Interrupted(Exception):
    """A signal asked the run to stop; its state was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
