"""Which epoch was the best so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

_HIGHER_IS_BETTER = ("top1", "pitch_match")
_COMPARES_ACROSS_TARGETS = "pitch_match"


@dataclass
class Best:
    """The best validation value of one metric so far."""

    metric: Literal["kl", "top1", "entropy_bits", "pitch_match"]
    value: float = math.nan
    epoch: int = -1

    def offer(self, value: float, epoch: int) -> bool:
        """Takes the value of an epoch; whether it is the best so far."""
        better = value > self.value if self.metric in _HIGHER_IS_BETTER else value < self.value
        if not better and not (math.isnan(self.value) and not math.isnan(value)):
            return False
        self.value, self.epoch = value, epoch
        return True

    @property
    def outlives_phases(self) -> bool:
        """Whether the figures of one phase compare with those of another."""
        return self.metric == _COMPARES_ACROSS_TARGETS

    def restart(self) -> None:
        """Other targets: most figures do not compare with those before."""
        if not self.outlives_phases:
            self.value, self.epoch = math.nan, -1

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
