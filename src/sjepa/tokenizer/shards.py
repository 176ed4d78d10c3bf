"""Checkpoints in DeepSpeed's layout: `latest`, `step<N>/`, `final/`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.core.learner import Learner
from sjepa.core.torch_files import write_torch_file
from sjepa.tokenizer.consolidate import CONTENT, LATEST, MODEL_STATES, consolidate
from sjepa.tokenizer.settings import TokConfig
from sjepa.training.checkpoint import States
from sjepa.training.system import Saved

SHARDS, DECODER_SHARDS = "jepa_encoder_ds", "decoder_ds"
PLAIN_KIND, PLAIN_FORMAT = "sjepa tokenizer states", 1
_STEP = re.compile(r"^step(\d+)$")


class ShardedTask(Protocol):
    """A task whose checkpoints have this layout. `described`: what a reader needs beside the
    weights of `learner`; `companions`: the contents of further files, by name."""

    @property
    def engine(self) -> Engine: ...

    @property
    def learner(self) -> Learner[Any]: ...

    @property
    def described(self) -> Mapping[str, Any]: ...

    def companions(self, states: States) -> Mapping[str, Mapping[str, Any]]: ...


class ShardFolder:
    """Written by DeepSpeed itself, one file of optimiser state per process; without it one file of
    the same name. Beside the weights a folder has the rest of the training state."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep, self._last = folder, keep, ""

    def save(self, tag: str, states: States, task: ShardedTask) -> None:
        """Writes `tag` (unless it was the last one written), points `latest` to it, and deletes the
        oldest steps beyond `keep`. Collective."""
        if tag == self._last:
            return
        self._last = tag
        learner, engine = task.learner, task.engine
        content = {
            "tag": tag,
            **task.described,
            "parameters": learner.parameter_names(),
            "states": {name: state for name, state in states.items() if name != "model"},
        }
        without_moments = {name: value for name, value in states["optimizer"].items() if name != "state"}
        in_shards = {**content, "states": {**content["states"], "optimizer": without_moments}}
        sharded = engine.save_shards(learner.model, self._folder, tag, {CONTENT: in_shards})
        if engine.ranks.is_main:
            if not sharded:
                plain = {"module": states["model"], CONTENT: content}
                write_torch_file(self._folder / tag / MODEL_STATES, plain, kind=PLAIN_KIND, format_number=PLAIN_FORMAT)
                write_text(self._folder / LATEST, tag)
            for name, companion in task.companions(states).items():
                kind = f"sjepa tokenizer {Path(name).stem}"
                write_torch_file(self._folder / name, {"tag": tag, **companion}, kind=kind, format_number=PLAIN_FORMAT)
            self._rotate(tag)

    def newest(self) -> Path | None:
        """The checkpoint that `latest` names."""
        try:
            return self._folder / (self._folder / LATEST).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self._folder / LATEST}: cannot be read ({error})") from None

    def read(self, path: Path) -> Saved:
        """The training state and the configuration of the run. Raises UserError if it is
        incomplete, damaged, or not of this program."""
        found = consolidate(path.parent, path.name)
        content = found.content
        if not isinstance(content.get("states"), dict) or not isinstance(content.get("config"), dict):
            raise UserError(f"{path}: holds weights, but not the state of a training run; ckpt2pt converts it")
        states = {**content["states"], "model": found.weights}
        if found.moments:
            numbers = {name: number for number, name in content["parameters"].items()}
            states["optimizer"] |= {"state": {numbers[name]: moments for name, moments in found.moments.items()}}
        return Saved(states, content["config"])

    def _rotate(self, newest: str) -> None:
        """Steps of an earlier run of the same name are older, whatever their number."""
        steps = [path for path in self._folder.iterdir() if _STEP.match(path.name) and path.name != newest]
        steps.sort(key=lambda path: (path / MODEL_STATES).stat().st_mtime_ns if (path / MODEL_STATES).exists() else 0)
        kept = self._keep - bool(_STEP.match(newest))
        for path in steps[: max(0, len(steps) - kept)]:
            shutil.rmtree(path, ignore_errors=True)


def shard_folder(config: TokConfig, folder: Path) -> ShardFolder | None:
    """Where a run's checkpoints are also written in this layout; None unless asked for."""
    return ShardFolder(folder, keep=config.checkpoint.max_checkpoint) if config.checkpoint.shards else None
