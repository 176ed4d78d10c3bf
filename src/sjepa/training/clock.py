"""Where a run is: everything about time that must survive a restart."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Clock:
    """`step` counts optimiser updates, `epoch` passes over the data, `batch` micro-batches taken from this epoch;
    `audio_seconds` is how much was trained on in the whole run."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    audio_seconds: float = 0.0

    def tick(self, *, batches: int, audio_seconds: float) -> None:
        """One optimiser update was made from `batches` micro-batches."""
        self.step += 1
        self.batch += batches
        self.audio_seconds += audio_seconds

    def next_epoch(self) -> None:
        self.epoch += 1
        self.batch = 0

    def state_dict(self) -> dict[str, float]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name in asdict(self):
            setattr(self, name, state[name])
