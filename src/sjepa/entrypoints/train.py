"""trainsjepa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sjepa.config.load import dump_config, load_config
from sjepa.config.schedule import RunProgress, Schedule, Stage
from sjepa.config.schema import Config
from sjepa.core.distributed import Engine, Processes
from sjepa.core.errors import UserError
from sjepa.core.files import remove_leftovers, write_text
from sjepa.dataset.loader import Loader
from sjepa.entrypoints.stopping import stopping_on_signals, told_to_stop
from sjepa.evaluation.evaluate import evaluate, write_results
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.model import SJEPA
from sjepa.reporting.console import Console, duration
from sjepa.reporting.report import RunReport, Silence
from sjepa.reporting.run_dir import RunDir, existing_runs, new_run
from sjepa.reporting.summary import describe_batches, describe_data, describe_model, describe_plan
from sjepa.reporting.tensorboard import event_writer
from sjepa.training.assembly import (
    Data,
    RunFiles,
    assemble,
    check_fits,
    estimated_bytes,
    evaluation_loader,
    given_gmm,
    load_data,
    plan_run,
    step_settings,
    train_loader,
)
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.estimate import seconds_per_audio_second
from sjepa.training.network import build_model, new_model
from sjepa.training.parts import Interrupted
from sjepa.training.resume import refuse_differences
from sjepa.training.trainer import STATE, Trainer
from sjepa.weights import load_weights


@dataclass(frozen=True)
class Resumed:
    """A run to go on with: its folder, the checkpoint, how far that came, and how many micro-batches make an update."""

    run_dir: RunDir
    checkpoint: Path
    progress: RunProgress
    batches_per_update: int

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


@dataclass(frozen=True)
class Prepared:
    """A run that was checked in every part and has written nothing yet."""

    engine: Engine
    data: Data
    loader: Loader
    schedule: Schedule
    grad_accum: int
    stage: Stage
    model: SJEPA
    given: DiagonalGMM | None
    resumed: Resumed | None


def train(config: Config, *, dry_run: bool = False) -> int:
    """Trains as configured; with `dry_run` only says what it would do. Returns the exit code."""
    processes = Processes(config.train.devices, config.train.num_nodes)
    engine = Engine(
        device=config.device,
        precision=config.train.precision,
        processes=processes,
        sharded=config.train.strategy == "fsdp",
        launch=not dry_run,
    )
    ranks = engine.ranks
    console = Console(quiet=not ranks.is_main)
    notes: list[str] = []
    resume = config.checkpoint.resume and not dry_run
    run = ranks.main_first(lambda: _prepare(config, engine, console, resume=resume, note=notes.append))
    if dry_run:
        _describe(config, console, run, notes)
        return 0
    run_dir = ranks.main_s(ranks.main_first(lambda: _run_folder(config, run, console) if ranks.is_main else None))
    assert run_dir is not None  # the main process has one
    try:
        _describe(config, console, run, notes)
        return _run(config, run, run_dir, console)
    except UserError:
        if ranks.is_main:
            raise
        return 0  # the main process has said it


def _run(config: Config, run: Prepared, run_dir: RunDir, console: Console) -> int:
    """From the first update to the figures of the test set."""
    is_main = run.engine.ranks.is_main
    events = event_writer(run_dir.root) if config.logging.tensorboard and is_main else None
    report = RunReport(console, run_dir, events=events) if is_main else Silence()
    trainer = _trainer(config, run, run_dir, report)
    _estimate_time(trainer, run, console)
    console.run_started(run.schedule.epochs, run.schedule.total_steps)
    try:
        with stopping_on_signals(trainer):
            trainer.run()
    except Interrupted as stop:
        return told_to_stop(stop.signal_number, warn=console.warn) if is_main else 0
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "dataset.num_workers: a process that reads audio was killed (out of memory?); fewer of them need less. "
            "checkpoint.resume=true goes on from the last checkpoint"
        ) from error
    finally:
        report.draw()
        report.close()
    _final_evaluation(config, run, run_dir, console)
    best = trainer.best
    which = f"best.pt is epoch {best.epoch}, {config.best.metric} {best.value:.4f}" if best.epoch >= 0 else "no best.pt"
    console.note(f"done: {run_dir.weights} ({which})")
    return 0


def _prepare(
    config: Config, engine: Engine, console: Console, *, resume: bool, note: Callable[[str], None]
) -> Prepared:
    """Reads and checks everything that a run needs. Raises UserError, with nothing written, if something does not fit."""
    cache_folder = Path(config.runs_root) / config.run_name / "cache"
    data = load_data(config, cache_folder=cache_folder, progress=console.progress)
    loader = train_loader(config, data, engine)
    if config.checkpoint.dir and Path(config.checkpoint.dir).exists() and not Path(config.checkpoint.dir).is_dir():
        raise UserError(f"checkpoint.dir: {config.checkpoint.dir} is not a folder")
    resumed = _run_to_resume(config, console) if resume else None
    processes = engine.processes.total
    grad_accum = resumed.grad_accum(processes) if resumed else config.train.grad_accum
    schedule = plan_run(
        config, loader, per_update=grad_accum * processes, progress=resumed.progress if resumed else None
    )
    stage = resumed.stage(schedule) if resumed else schedule.at(0)
    check_fits(config, data, schedule)
    return Prepared(
        engine=engine,
        data=data,
        loader=loader,
        schedule=schedule,
        grad_accum=grad_accum,
        stage=stage,
        model=new_model(config, stage) if resumed else build_model(config, stage, note=note),
        given=None if resumed else given_gmm(config, stage),
        resumed=resumed,
    )


def _run_folder(config: Config, run: Prepared, console: Console) -> RunDir:
    """The folder to write to: a new one with the configuration in it, or that of the run to go on with."""
    if run.resumed is None:
        run_dir = new_run(Path(config.runs_root), config.run_name, "train")
        write_text(run_dir.config, dump_config(config))
    else:
        run_dir = run.resumed.run_dir
        remove_leftovers(run_dir.root)
    console.log_to(run_dir.logs, "train")
    console.note(f"run folder {run_dir.root}")
    return run_dir


def _trainer(config: Config, run: Prepared, run_dir: RunDir, report: RunReport | Silence) -> Trainer:
    """The trainer, where the checkpoint left it if there is one."""
    trainer = assemble(
        config,
        run.data,
        engine=run.engine,
        schedule=run.schedule,
        train=run.loader,
        grad_accum=run.grad_accum,
        model=run.model,
        stage=run.stage,
        given=run.given,
        fresh=run.resumed is None,
        files=RunFiles(run_dir.weights, _checkpoint_folder(config, run_dir), run_dir.gmm),
        report=report,
    )
    if run.resumed:
        Checkpoints.load(run.resumed.checkpoint, trainer.state)
        report.resume(trainer.clock.epoch)
        report.note(
            f"going on from {run.resumed.checkpoint.name}: epoch {trainer.clock.epoch}, step {trainer.clock.step}"
        )
    return trainer


def _describe(config: Config, console: Console, run: Prepared, notes: list[str]) -> None:
    """Data, model, batch, plan and memory, before anything costs time."""
    for note in notes:
        console.note(note)
    console.plain(describe_data(run.data))
    for name, reason in [*run.data.train.dropped, *run.data.test.dropped]:
        console.detail(f"dropped {name}: {reason}")
    console.plain(describe_model(run.model))
    processes = run.engine.processes.total
    console.plain(describe_batches(config, run.loader, grad_accum=run.grad_accum, processes=processes))
    memory = estimated_bytes(config, run.engine, run.loader, run.schedule, run.model)
    console.note(
        f"device      {run.engine.describe()}; about {memory / 2**30:.1f} GiB for weights, optimiser and activations"
    )
    console.plain(describe_plan(run.schedule))
    for warning in run.schedule.warnings():
        console.warn(warning)


def _run_to_resume(config: Config, console: Console) -> Resumed | None:
    """The highest-numbered run with a checkpoint that can be read, and that checkpoint."""
    for run_dir in reversed(existing_runs(Path(config.runs_root), config.run_name, "train")):
        checkpoints = Checkpoints(_checkpoint_folder(config, run_dir), keep=config.checkpoint.max_checkpoint)
        for path in reversed(checkpoints.paths()):
            try:
                clock = Checkpoints.read(path, STATE)["clock"]
            except UserError as error:
                console.warn(f"passed over: {error}")
                continue
            used = load_config(run_dir.config).model_dump(mode="json", by_alias=True)
            refuse_differences(used, config.model_dump(mode="json", by_alias=True), run_dir.root)
            return Resumed(run_dir, path, RunProgress(clock["step"], clock["entered"]), clock["per_update"])
    console.note("checkpoint.resume: no checkpoint to go on from; this is a new run")
    return None


def _checkpoint_folder(config: Config, run_dir: RunDir) -> Path:
    """`checkpoint.dir` may serve many runs: each has a folder of its own there."""
    if config.checkpoint.dir is None:
        return run_dir.checkpoints
    return Path(config.checkpoint.dir) / config.run_name / run_dir.root.name


def _estimate_time(trainer: Trainer, run: Prepared, console: Console) -> None:
    """Times a few real micro-batches and says how long the rest will take."""
    parts, stage, loader, schedule = trainer.parts, trainer.stage, run.loader, run.schedule
    batches = loader.epoch(trainer.clock.epoch, augment=stage.augment)
    per_second = seconds_per_audio_second(
        parts.engine, parts.model, parts.optimizer, parts.targets, batches, stage=stage, settings=parts.settings
    )
    if per_second is None:
        return
    together = run.engine.processes.total / per_second  # seconds of audio per second
    windows = loader.dataset.windows
    epoch_seconds = float(windows.length_N.sum()) / loader.dataset.clips.sample_rate
    left = (schedule.total_steps - trainer.clock.step) / schedule.steps_per_epoch * epoch_seconds / together
    slower = ", phase 2 takes somewhat longer" if stage.phase < schedule.stages[-1].phase else ""
    console.note(
        f"about {duration(left)} of training ({together:.0f} s of audio per second), validation not counted{slower}"
    )


def _final_evaluation(config: Config, run: Prepared, run_dir: RunDir, console: Console) -> None:
    """The best weights on the whole test set."""
    path = run_dir.weights / "best.pt"
    if not run.engine.ranks.main_s(path.exists()):
        console.warn("no epoch had usable validation figures, so there is no best.pt; the last weights are evaluated")
        path = run_dir.weights / "last.pt"
    results = evaluate(
        run.engine,
        load_weights(path),
        evaluation_loader(config, run.data.test.clips, run.engine),
        settings=step_settings(config),
        progress=console.progress,
        warn=console.warn,
    )
    if run.engine.ranks.is_main:
        write_results(run_dir.results, results)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in results.items() if name != "frames")
    console.note(f"full test set, {path.name}: {shown}")
