"""Finds the run and checkpoint to resume, and checks that the configuration is compatible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjepa.config.load import load_config, parse_config
from sjepa.config.run import RunConfig
from sjepa.core.errors import UserError
from sjepa.reporting.console import Console
from sjepa.reporting.run_dir import RunDir, existing_runs
from sjepa.training.checkpoint import SUFFIX, Checkpoints, complete
from sjepa.training.schedule import RunProgress, Schedule, Stage
from sjepa.training.system import Saved, System
from sjepa.training.trainer import STATE

# Keys that may change on resume; any other change requires a new run. (A run folder may be moved.)
_FREE = ("runs_root", "run_name", "train.epochs", "train.max_steps", "train.log_every", "train.devices", "train.num_nodes",
         "train.strategy", "train.zero_stage", "train.ds_config", "train.probe_memory",
         "dataset.num_workers", "decoder.sample_", "checkpoint.", "health.", "logging.")  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A run to resume: folder (None: only a copy of a checkpoint is left, and it goes on in a new
    one), checkpoint, progress, and micro-batches per update."""

    run_dir: RunDir | None
    checkpoint: Path
    progress: RunProgress
    epoch: int
    batches_per_update: int
    data: dict[str, str]  # fingerprint of its training set

    def grad_accum(self, processes: int) -> int:
        """Micro-batches per rank that keep the global batch. Raises UserError if it is not
        divisible."""
        share, rest = divmod(self.batches_per_update, processes)
        if rest:
            raise UserError(
                f"train.devices: {processes} processes cannot share the {self.batches_per_update} micro-batches that make "
                "one update of the run to be resumed"
            )
        return share

    def stage(self, schedule: Schedule[Any]) -> Stage:
        """The stage that the checkpoint was made in; the next one may start with the very next
        update."""
        last = list(self.progress.entered)[-1]
        found: Stage = next(stage for stage in schedule.stages if stage.name == last)  # plans keep entered stages
        return found


def run_to_resume(system: System, config: RunConfig, console: Console) -> Resumed | None:
    """The highest-numbered run with a readable checkpoint, and its latest such checkpoint; else the
    latest copy of one (`System.copies`); None if there is neither."""
    candidates: list[tuple[RunDir | None, Path]] = []
    for run_dir in reversed(existing_runs(Path(config.runs_root), config.run_name, "train")):
        checkpoints = Checkpoints(checkpoint_folder(config, run_dir), keep=config.checkpoint.max_checkpoint)
        candidates += [(run_dir, path) for path in reversed(checkpoints.paths())]
    copies = system.copies(config, _folder(config))
    newest = copies.newest() if copies else None
    if newest:
        candidates.append((None, newest))
    for found, path in candidates:
        used = load_config(system.schema, found.config) if found else None
        if used is not None and not system.owns(used):
            continue
        try:
            saved = read_saved(system, config, path)
        except UserError as error:
            console.warn(f"ignored: {error}")
            continue
        used = used or parse_config(system.schema, saved.config)
        given = config.model_dump(mode="json", by_alias=True)
        refuse_differences(used.model_dump(mode="json", by_alias=True), given, found.root if found else path)
        clock = saved.states["clock"]
        progress = RunProgress(clock["step"], clock["entered"])
        return Resumed(found, path, progress, clock["epoch"], clock["per_update"], saved.states["data"])
    console.note("checkpoint.resume: no checkpoint to resume from; this is a new run")
    return None


def read_saved(system: System, config: RunConfig, path: Path) -> Saved:
    """A checkpoint or a copy of one. Raises UserError if it is missing, damaged or incomplete."""
    names = {*STATE, *system.state}
    copies = system.copies(config, _folder(config))
    if copies is None or path.suffix == SUFFIX:
        return Saved(Checkpoints.read(path, names), {})
    saved = copies.read(path)
    complete(saved.states, names, path)
    return saved


def _folder(config: RunConfig) -> Path:
    return Path(config.runs_root) / config.run_name


def checkpoint_folder(config: RunConfig, run_dir: RunDir) -> Path:
    """`checkpoint.dir` may be shared by runs: each has its own subfolder."""
    if config.checkpoint.dir is None:
        return run_dir.checkpoints
    return Path(config.checkpoint.dir) / config.run_name / run_dir.root.name


def differences(used: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`key: old → new` for every changed key that must not change."""
    old, new = _flat(used), _flat(wanted)
    names = [*new, *(name for name in old if name not in new)]
    changed = [name for name in names if old.get(name) != new.get(name) and not name.startswith(_FREE)]
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in changed]


def refuse_differences(used: dict[str, Any], wanted: dict[str, Any], run: Path) -> None:
    """Raises UserError with the list of keys that differ from those of the run to be resumed."""
    changed = differences(used, wanted)
    if changed:
        first = f"checkpoint.resume: {run} was made with another configuration; change back or start a new run:"
        raise UserError("\n".join([first, *changed]))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
