"""Position and elapsed time of a run, saved in its checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Clock:
    """Position of a run: `step` optimiser updates, `epoch` passes over the data, `batch`
    micro-batches taken from this epoch by all ranks, `per_update` micro-batches per update,
    `audio_seconds` trained on so far; `entered`: the stages so far and the step at which each
    was entered."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    per_update: int = 1
    audio_seconds: float = 0.0
    entered: dict[str, int] = field(default_factory=dict)

    def tick(self, *, batches: int, audio_seconds: float) -> None:
        """Counts one optimiser update of `batches` micro-batches."""
        self.step += 1
        self.batch += batches
        self.audio_seconds += audio_seconds

    def next_epoch(self) -> None:
        self.epoch += 1
        self.batch = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in asdict(self):
            setattr(self, name, state[name])


@dataclass
class Interval:
    """Measurements since `started`: `waited` seconds waiting for data, `samples` of audio,
    number of `updates`, sum of their gradient norms; `before`: seconds elapsed before the run
    was resumed."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    samples: int = 0
    updates: int = 0
    gradient_norm: float = 0.0
    before: float = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    @property
    def waiting(self) -> float:
        return self.waited / max(self.seconds, 1e-9)

    def restart(self) -> None:
        """Restarts the timer after a pause that is not counted."""
        self.started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "before": self.seconds,
            "waited": self.waited,
            "updates": self.updates,
            "gradient_norm": self.gradient_norm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
