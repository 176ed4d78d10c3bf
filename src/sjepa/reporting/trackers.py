"""Loggers beside the run's own files: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sjepa.config.run import Logging
from sjepa.core.errors import UserError

_PROJECT = "sjepa"
EPOCHS = "epochs/"


_EXTRAS = {"tensorboard": "TensorBoard", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """Receives figures of a run as they are known."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """`values` by name: train_steps/loss after `step` updates, epochs/val_loss of epoch
        `step`."""
        ...

    def close(self) -> None: ...


def check_installed(settings: Logging) -> None:
    """Raises UserError if the package of a configured logger is missing."""
    for name, title in _EXTRAS.items():
        if getattr(settings, name) not in (False, "off") and name not in sys.modules and find_spec(name) is None:
            raise UserError(f"logging.{name}: {title} is not installed (pip install 'sjepa[{name}]')")


def trackers(
    settings: Logging, *, folder: Path, name: str, config: Mapping[str, Any], warn: Callable[[str], None]
) -> list[Tracker]:
    """Those that are configured. `folder`: of the run. Raises UserError if one is not installed or
    cannot start."""
    makers: dict[str, Callable[[], Tracker]] = {}
    if settings.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(folder)
    if settings.wandb != "off":
        makers["wandb"] = lambda: WeightsAndBiases(settings.wandb, folder, name, config)
    if settings.trackio:
        makers["trackio"] = lambda: Trackio(name, config)
    found: list[Tracker] = []
    for key, make in makers.items():
        try:
            found.append(Careful(key, make(), warn))
        except Exception as error:
            for tracker in found:
                tracker.close()
            raise error if isinstance(error, UserError) else UserError(f"logging.{key}: {_line(error)}") from error
    return found


class Careful:
    """A tracker whose failures do not end a run: the first is told, and it gets nothing more."""

    def __init__(self, key: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._key, self._warn = key, warn
        self._tracker: Tracker | None = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._do(lambda tracker: tracker.log(values, step))

    def close(self) -> None:
        self._do(lambda tracker: tracker.close())

    def _do(self, work: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            work(self._tracker)
        except Exception as error:
            self._tracker = None
            self._warn(f"logging.{self._key} failed, and is off from here on: {_line(error)}")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class TensorBoard:
    """Events in `folder`/tensorboard."""

    def __init__(self, folder: Path) -> None:
        module = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project sjepa; with mode offline its files are in `folder`/wandb, for `wandb
    sync`."""

    def __init__(self, mode: str, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        module = import_module("wandb")
        self._run = module.init(project=_PROJECT, name=name, dir=str(folder), mode=mode, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, _axis(values): step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project sjepa in Trackio's local store; nothing leaves the machine."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._module = import_module("trackio")
        self._module.init(project=_PROJECT, name=name, config=dict(config), embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log({**values, _axis(values): step})

    def close(self) -> None:
        self._module.finish()


def _axis(values: Mapping[str, float]) -> str:
    """What `step` counts."""
    return "epoch" if all(name.startswith(EPOCHS) for name in values) else "update"
