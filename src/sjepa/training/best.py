"""Which epoch was the best so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from sjepa.metrics import Metrics


@dataclass
class Best:
    """The best validation value of one metric: the highest `top1`, the lowest of any other."""

    metric: Literal["kl", "top1", "entropy_bits"]
    value: float = math.nan
    epoch: int = -1

    def offer(self, metrics: Metrics, epoch: int) -> bool:
        """Takes the metrics of an epoch; whether they are the best so far."""
        value = float(getattr(metrics, self.metric))
        better = value > self.value if self.metric == "top1" else value < self.value
        if not better and not (math.isnan(self.value) and not math.isnan(value)):
            return False
        self.value, self.epoch = value, epoch
        return True

    def restart(self) -> None:
        """Another phase: its figures do not compare with those before."""
        self.value, self.epoch = math.nan, -1

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
