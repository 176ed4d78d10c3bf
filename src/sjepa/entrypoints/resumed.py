"""Which run goes on, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sjepa.config.load import load_config
from sjepa.config.schedule import RunProgress, Schedule, Stage
from sjepa.config.schema import Config
from sjepa.core.errors import UserError
from sjepa.reporting.console import Console
from sjepa.reporting.run_dir import RunDir, existing_runs
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.resume import refuse_differences
from sjepa.training.trainer import STATE


@dataclass(frozen=True)
class Resumed:
    """A run to go on with: its folder, the checkpoint, how far that came, and how many micro-batches make an update."""

    run_dir: RunDir
    checkpoint: Path
    progress: RunProgress
    epoch: int
    batches_per_update: int
    data: dict[str, str]  # the state of the fingerprint of its training set

    def grad_accum(self, processes: int) -> int:
        """Micro-batches that each process takes for the same global batch. Raises UserError if it cannot be shared out."""
        share, rest = divmod(self.batches_per_update, processes)
        if rest:
            raise UserError(
                f"train.devices: {processes} processes cannot share the {self.batches_per_update} micro-batches that make "
                "one update of the run to go on with"
            )
        return share

    def stage(self, schedule: Schedule) -> Stage:
        """The stage that the checkpoint was made in; the next one may start with the very next update."""
        last = list(self.progress.entered)[-1]
        return next(stage for stage in schedule.stages if stage.name == last)  # plans keep what was entered


def run_to_resume(config: Config, console: Console) -> Resumed | None:
    """The highest-numbered run with a checkpoint that can be read, and that checkpoint."""
    for run_dir in reversed(existing_runs(Path(config.runs_root), config.run_name, "train")):
        checkpoints = Checkpoints(checkpoint_folder(config, run_dir), keep=config.checkpoint.max_checkpoint)
        for path in reversed(checkpoints.paths()):
            try:
                states = Checkpoints.read(path, STATE)
                clock = states["clock"]
            except UserError as error:
                console.warn(f"passed over: {error}")
                continue
            used = load_config(run_dir.config).model_dump(mode="json", by_alias=True)
            refuse_differences(used, config.model_dump(mode="json", by_alias=True), run_dir.root)
            return Resumed(
                run_dir,
                path,
                RunProgress(clock["step"], clock["entered"]),
                clock["epoch"],
                clock["per_update"],
                states["data"],
            )
    console.note("checkpoint.resume: no checkpoint to go on from; this is a new run")
    return None


def checkpoint_folder(config: Config, run_dir: RunDir) -> Path:
    """`checkpoint.dir` may serve many runs: each has a folder of its own there."""
    if config.checkpoint.dir is None:
        return run_dir.checkpoints
    return Path(config.checkpoint.dir) / config.run_name / run_dir.root.name
