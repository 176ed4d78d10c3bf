"""Loggers beside the run's own files: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sjepa.config.run import Logging
from sjepa.core.errors import UserError

_PROJECT = "sjepa"


class Tracker(Protocol):
    """Receives figures of a run as they are known."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """`values` by name, such as train_steps/loss, after so many updates."""
        ...

    def close(self) -> None: ...


def trackers(settings: Logging, *, folder: Path, name: str, config: Mapping[str, Any]) -> list[Tracker]:
    """Those that are configured. `folder`: of the run. Raises UserError if one is not installed."""
    makers: list[tuple[bool, Callable[[], Tracker]]] = [
        (settings.tensorboard, lambda: TensorBoard(folder)),
        (settings.wandb != "off", lambda: WeightsAndBiases(settings.wandb, folder, name, config)),
        (settings.trackio, lambda: Trackio(name, config)),
    ]
    return [make() for wanted, make in makers if wanted]


class TensorBoard:
    """Events in `folder`/tensorboard."""

    def __init__(self, folder: Path) -> None:
        module = _module("torch.utils.tensorboard", "tensorboard", "TensorBoard")
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
        module = _module("wandb", "wandb", "wandb")
        self._run = module.init(project=_PROJECT, name=name, dir=str(folder), mode=mode, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "update": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project sjepa in Trackio's local store; nothing leaves the machine."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._module = _module("trackio", "trackio", "trackio")
        self._module.init(project=_PROJECT, name=name, config=dict(config), embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log({**values, "update": step})

    def close(self) -> None:
        self._module.finish()


def _module(name: str, extra: str, title: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"logging.{extra}: {title} is not installed (pip install 'sjepa[{extra}]')") from None
