"""What a system measures, by name: terminal, history, pictures and the choice of the best weights go by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One kind of figure.

    `name` is its column in the history: with prefixes train_ and val_ (`where` "both"), val_ ("validation"), none
    ("run"), or a number for each layer behind it ("layers"). `title` and `axis` (with the unit) are those of its picture;
    `label`, `shown` (a format) and `unit` serve the terminal. `better`: which way is better, for a figure that can choose
    the best weights; `across_phases`: whether its values compare between phases. `beside`: drawn dashed in the picture of
    that figure. `marks`: a column whose changes are marked in the picture, and their text.
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
        """For the terminal: `kl 1.2345`."""
        return f"{self.label or self.name} {value:{self.shown}}{self.unit}"


@dataclass
class Best:
    """The best validation value of one figure so far, and its epoch."""

    figure: Figure
    value: float = math.nan
    epoch: int = -1

    def offer(self, value: float, epoch: int) -> bool:
        """Takes the value of an epoch; whether it is the best so far."""
        better = value > self.value if self.figure.better == "higher" else value < self.value
        if not better and not (math.isnan(self.value) and not math.isnan(value)):
            return False
        self.value, self.epoch = value, epoch
        return True

    def restart(self) -> None:
        """Forgets the best value, unless the figure compares across phases."""
        if not self.figure.across_phases:
            self.value, self.epoch = math.nan, -1

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.figure.name, "value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
