"""Checkpoints of the full training state: atomic writes, rotation, lookup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.sharding import load_state, whole
from sjepa.core.torch_files import read_torch_file, write_torch_file

States = dict[str, Any]  # the state of every part of a run, by name

_KIND, _FORMAT = "sjepa checkpoint", 4
SUFFIX = ".pth"
_NAME = re.compile(rf"^epoch_(\d+)(?:_step_(\d+))?\{SUFFIX}$")


class Stateful(Protocol):
    """Anything with `state_dict` and `load_state_dict`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Checkpoints:
    """The checkpoints of one run: `epoch_000.pth` at the end of an epoch,
    `epoch_000_step_0001200.pth` within one."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        writes: bool = True,
        also: Callable[[int, States], None] = lambda step, states: None,
    ) -> None:
        """`writes`: whether this process writes the files (rank 0 only). `also` is called after
        each checkpoint, on all ranks, with the number of updates made and the states."""
        self.folder, self._keep, self._writes, self._also = folder, keep, writes, also

    def save(self, parts: dict[str, Stateful], *, epoch: int, step: int | None = None) -> Path:
        """Saves the state of all `parts`, then deletes the oldest files beyond `keep`."""
        name = f"epoch_{epoch:03d}.pth" if step is None else f"epoch_{epoch:03d}_step_{step:07d}.pth"
        states = self.gathered(parts)
        if self._writes:
            self._write(name, states)
        self._also(states["clock"]["step"] if "clock" in states else 0, states)
        return self.folder / name

    def gathered(self, parts: dict[str, Stateful]) -> States:
        """The state of all `parts`, unsharded, on the CPU; without tensors in processes that do not
        write. Collective."""
        keep = Tensor.cpu if self._writes else _nothing
        return whole({name: part.state_dict() for name, part in parts.items()}, keep)  # type: ignore[no-any-return]

    def _write(self, name: str, states: States) -> None:
        write_torch_file(self.folder / name, {"parts": states}, kind=_KIND, format_number=_FORMAT)
        others = [path for path in self.paths() if path.name != name]
        for path in others[: max(0, len(others) - self._keep + 1)]:
            path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = [(match, path) for path in self.folder.glob("*.pth") if (match := _NAME.match(path.name))]
        return [path for match, path in sorted(found, key=lambda item: _order(item[0]))]

    @staticmethod
    def read(path: Path, names: Iterable[str]) -> States:
        """The states of the parts `names`. Raises UserError if the file is not a checkpoint of
        exactly these."""
        return complete(read_torch_file(path, kind=_KIND, format_number=_FORMAT).get("parts"), names, path)

    @staticmethod
    def load(path: Path, parts: dict[str, Stateful]) -> None:
        """Loads the state of all `parts`, in order. Raises UserError if the file does not match;
        parts, keys and tensor shapes are checked before anything is loaded."""
        put_back(Checkpoints.read(path, parts), parts, path)


def complete(states: object, names: Iterable[str], path: Path) -> States:
    """`states`, read from `path`. Raises UserError if they are not of exactly the parts `names`."""
    if not isinstance(states, dict):
        raise UserError(f"{path}: holds no state")
    missing, unknown = set(names) - set(states), set(states) - set(names)
    if missing:
        raise UserError(f"{path}: incomplete, without {', '.join(sorted(missing))}")
    if unknown:
        raise UserError(f"{path}: holds {', '.join(sorted(unknown))}, which this run does not have")
    return states


def put_back(states: States, parts: dict[str, Stateful], path: Path) -> None:
    """Loads the states, read from `path`, into `parts`, in order; see `Checkpoints.load`."""
    for name, part in parts.items():
        problem = _mismatch(part.state_dict(), states[name])
        if problem:
            raise UserError(f"{path}: its {name} does not fit this run ({problem})")
    for name, part in parts.items():
        try:
            load_state(part, states[name])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: its {name} does not fit this run ({' '.join(str(error).split())})") from None


def _nothing(tensor: Tensor) -> None:
    """Discards a tensor, in processes that do not write."""


def _mismatch(own: dict[str, Any], given: dict[str, Any]) -> str:
    """The keys present in only one state, or the first tensor of another shape; empty if the
    states match."""
    if not isinstance(given, dict):
        return "not a state"
    different = sorted(set(own) ^ set(given))
    if different:
        return f"{', '.join(different[:3])}{' …' if len(different) > 3 else ''}: only in one of the two"
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and getattr(given[name], "shape", None) != value.shape:
            return f"{name}: not of shape {tuple(value.shape)}"
    return ""


def _order(match: re.Match[str]) -> tuple[int, float]:
    """Sort key: an epoch-end checkpoint comes after those within the epoch."""
    return int(match[1]), int(match[2]) if match[2] else float("inf")
