"""Health checks of a run: non-finite updates, unreadable clips, collapse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sjepa.core.errors import SharedError
from sjepa.dataset.batch import Failure
from sjepa.training.report import Report

_MOST_IN_A_ROW = 10
_MOST_FAILED_SHARE = 0.01
_NAMED = 10


class RunStopped(SharedError):
    """A health check stopped the run; its state was saved."""


class News(NamedTuple):
    """Report of one rank to all ranks after an update: stop signal, unreadable clips, and the
    clips of a non-finite update."""

    stop_signal: int | None
    failures: tuple[Failure, ...]
    clips: tuple[str, ...]


@dataclass
class NonFiniteUpdates:
    """Counts updates skipped because of a non-finite loss or gradient."""

    total: int = 0
    in_a_row: int = 0
    made: int = 0  # finite updates

    def saw(self, finite: bool) -> None:
        self.total += not finite
        self.made += finite
        self.in_a_row = 0 if finite else self.in_a_row + 1

    def check(self) -> None:
        """Raises RunStopped after 10 non-finite updates in a row."""
        if self.in_a_row >= _MOST_IN_A_ROW:
            raise RunStopped(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite; the state is saved. "
                "A new run may do better with a lower learning rate or train.precision: fp32"
            )

    def check_end(self) -> None:
        """Raises RunStopped if no update of the run was finite."""
        if self.total and not self.made:
            raise RunStopped(
                f"not one of {self.total} updates had a finite loss and gradient, so nothing was learned; "
                "a lower learning rate or train.precision: fp32 may help"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row, "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row, self.made = state["total"], state["in_a_row"], state.get("made", 1)


@dataclass
class UnreadableClips:
    """Clips of an epoch that failed to decode, with the reason; `clips` is the epoch's number of
    clips. The first `told` of them already stopped the run and are not counted again when it is
    resumed in this epoch."""

    clips: int
    found: dict[str, str] = field(default_factory=dict)
    told: int = 0

    def saw(self, failures: Iterable[Failure]) -> None:
        self.found.update({failure.name: failure.reason for failure in failures if failure.is_own})

    def reset(self) -> None:
        self.found.clear()
        self.told = 0

    def state_dict(self) -> dict[str, Any]:
        return {"found": dict(self.found), "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found, self.told = dict(state["found"]), state["told"]

    def check(self) -> None:
        """Raises RunStopped, listing the clips, when more than 1 % of the epoch's clips (and
        more than one) failed."""
        if len(self.found) - self.told > max(1, _MOST_FAILED_SHARE * self.clips):
            self.told = len(self.found)
            shown = "; ".join(f"{name}: {reason}" for name, reason in list(self.found.items())[:_NAMED])
            reasons = Counter(self.found.values())
            rest = f" … and {len(self.found) - _NAMED} more" if len(self.found) > _NAMED else ""
            raise RunStopped(
                f"{len(self.found)} of {self.clips} clips could not be read in this epoch ({len(reasons)} reasons), "
                f"more than 1 %: {shown}{rest}. The state is saved; dataset.validate: full finds such files beforehand "
                "(not in a stream)"
            )


@dataclass
class CollapseAlarm:
    """On signs of collapse, warns once per epoch or stops the run."""

    on_collapse: Literal["warn", "stop"]
    epoch: int = -1  # of the last warning

    def check(self, signs: Sequence[str], epoch: int, report: Report) -> None:
        """Raises RunStopped if there are signs and `on_collapse` is "stop"."""
        if not signs or (self.on_collapse == "warn" and epoch == self.epoch):
            return
        text = f"collapse: {'; '.join(signs)}"
        if self.on_collapse == "stop":
            raise RunStopped(f"{text}. The state is saved; a new run may do better with a lower learning rate")
        self.epoch = epoch
        report.warn(f"{text}. Training continues (health.on_collapse: stop would end it)")

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
