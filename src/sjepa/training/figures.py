"""Metric definitions of a system: used for terminal, history, plots and selection of the best
weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric.

    `name` is its column in the history: with prefixes train_ and val_ (`where` "both"), with val_
    ("validation"), without prefix ("run"), or with the layer number appended ("layers"). `title`
    and `axis` (with unit) label its plot; `label`, `shown` (a format) and `unit` its terminal
    output. `better`: direction of improvement, for a metric that can select the best weights;
    `across_phases`: whether values are comparable between phases. `beside`: the metric in whose
    plot this one is drawn dashed. `marks`: a column whose changes are marked in the plot, and the
    text of the marks.
    """

    name: str
    title: str = ""
    axis: str = ""
    where: Literal["both", "validation", "run", "layers"] = "both"
    label: str = ""
    shown: str = ".4f"
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    across_phases: bool = False
    from_zero: bool = False
    beside: str | None = None
    marks: tuple[str, str] | None = None

    def text(self, value: float) -> str:
        """Terminal text, e.g. `kl 1.2345`."""
        return f"{self.label or self.name} {value:{self.shown}}{self.unit}"


@dataclass
class Best:
    """The best validation value of one metric so far, and its epoch."""

    figure: Figure
    value: float = math.nan
    epoch: int = -1

    def offer(self, value: float, epoch: int) -> bool:
        """Updates the best value; returns whether this epoch improved it."""
        better = value > self.value if self.figure.better == "higher" else value < self.value
        if not better and not (math.isnan(self.value) and not math.isnan(value)):
            return False
        self.value, self.epoch = value, epoch
        return True

    def restart(self) -> None:
        """Resets the best value, unless the metric is comparable across phases."""
        if not self.figure.across_phases:
            self.value, self.epoch = math.nan, -1

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.figure.name, "value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
