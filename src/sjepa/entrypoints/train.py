"""The command `trainsjepa`, for any system."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from sjepa.config.load import dump_config
from sjepa.core.distributed import Engine, Processes
from sjepa.core.errors import SharedError, UserError
from sjepa.core.files import remove_leftovers, write_csv, write_text
from sjepa.dataset.loader import worker_killed
from sjepa.entrypoints.resume import Resumed, checkpoint_folder, read_saved, run_to_resume
from sjepa.entrypoints.stopping import end_of_one, stopping_on_signals, told_to_stop
from sjepa.reporting.console import Console, duration
from sjepa.reporting.data_summary import summarise, write_summary
from sjepa.reporting.run_dir import RunDir, new_run
from sjepa.reporting.run_page import write_run_page
from sjepa.reporting.run_report import RunReport, Silence
from sjepa.reporting.step_log import StepLog
from sjepa.reporting.summary import describe_batches, describe_data, describe_stages
from sjepa.reporting.trackers import check_installed, trackers
from sjepa.training.checkpoint import Checkpoints, put_back
from sjepa.training.compilation import check_compiler
from sjepa.training.data import training_windows
from sjepa.training.feeding import fixed_loader, load_data, train_loader
from sjepa.training.figures import Best
from sjepa.training.health import CollapseAlarm
from sjepa.training.memory import probe_memory
from sjepa.training.system import Prepared, System
from sjepa.training.task import Interrupted, Task, Validation
from sjepa.training.timing import seconds_per_audio_second
from sjepa.training.trainer import Cadence, RunParts, Trainer


def train(system: System, config: Any, *, dry_run: bool = False) -> int:
    """Trains as configured; `dry_run` only prints the plan. Returns the exit code."""
    processes = Processes(config.train.devices, config.train.num_nodes)
    engine = Engine(
        device=config.device,
        precision=config.train.precision,
        processes=processes,
        strategy=config.train.strategy,
        zero_stage=config.train.zero_stage,
        exchange=config.train.gradient_exchange,
        launch=not dry_run,
    )
    ranks = engine.ranks
    console = Console(quiet=not ranks.is_main)
    notes: list[str] = []
    resume = config.checkpoint.resume and not dry_run
    try:
        resumed = ranks.only_main(lambda: run_to_resume(system, config, console)) if resume else None
        run = ranks.main_first(lambda: _prepare(system, config, engine, console, resumed))
        start = ranks.main_first(lambda: system.start(run, note=notes.append))
        if dry_run:
            _describe(system, run, start, console, notes)
            return 0
        _refuse_other_data(run)
        run_dir = ranks.only_main(lambda: _run_folder(config, resumed, console))
        _describe(system, run, start, console, notes)
        return _run(system, run, start, resumed, run_dir, console)
    except Exception as error:
        if ranks.size == 1 or (ranks.is_main and isinstance(error, UserError)):
            raise
        return end_of_one(error, ranks)


def _refuse_other_data(run: Prepared) -> None:
    """Raises SharedError if ranks see different data, which would deadlock."""
    own = (run.data.fingerprint.state_dict(), run.loader.num_batches)
    if len({repr(seen) for seen in run.engine.ranks.each(own)}) > 1:
        raise SharedError("dataset.train_path: the processes see different clips; give all machines the same files")


def _run(system: System, run: Prepared, start: Any, resumed: Resumed | None, run_dir: RunDir, console: Console) -> int:
    """Training and final evaluation. Returns the exit code."""
    is_main = run.engine.ranks.is_main
    report = run.engine.ranks.main_first(lambda: _report(system, run, resumed, run_dir, console))
    if is_main:
        _summarise(run, run_dir, console)
    try:
        best = _train(system, run, start, resumed, run_dir, console, report)
    except Interrupted as stop:
        return told_to_stop(stop.signal_number, warn=console.warn) if is_main else 0
    finally:
        report.draw()
        report.close()
    _final_evaluation(system, run, run_dir, console)
    which = f"best.pt is epoch {best.epoch}, {best.figure.name} {best.value:.4f}" if best.epoch >= 0 else "no best.pt"
    console.note(f"done: {run_dir.weights} ({which})")
    return 0


def _train(
    system: System,
    run: Prepared,
    start: Any,
    resumed: Resumed | None,
    run_dir: RunDir,
    console: Console,
    report: RunReport | Silence,
) -> Best:
    """Training, from a checkpoint if there is one. Returns the best epoch; raises Interrupted."""
    task = system.task(run, start, run_dir.root, report)
    copies = system.copies(run.config, run_dir.root.parent)
    checkpoints = Checkpoints(
        checkpoint_folder(run.config, run_dir),
        keep=run.config.checkpoint.max_checkpoint,
        writes=run.engine.ranks.is_main,
        also=lambda step, states: copies.save(f"step{step}", states, task) if copies else None,
    )
    trainer = _trainer(system, run, task, report, checkpoints)
    if resumed:
        saved = read_saved(system, run.config, resumed.checkpoint)
        put_back(saved.states, trainer.state, resumed.checkpoint)
        report.note(f"resumed from {resumed.checkpoint.name}: epoch {trainer.clock.epoch}, step {trainer.clock.step}")
        if resumed.run_dir is None:  # the weights of the best epoch so far are lost
            trainer.best = Best(trainer.best.figure)
            task.keep_weights(trainer.clock, Validation({}), is_best=False)
    if run.config.train.probe_memory:
        _probe_memory(task, run, console)
    _estimate_time(trainer, run, console)
    console.run_started(run.schedule.epochs, run.schedule.total_steps)
    try:
        with stopping_on_signals(trainer):
            trainer.run()
        if copies:
            copies.save("final", checkpoints.gathered(trainer.state), task)
    except RuntimeError as error:
        raise worker_killed(
            error, "With checkpoint.resume=true the run goes on from its last checkpoint"
        ) from error.__cause__
    report.finished()
    return trainer.best


def _trainer(
    system: System,
    run: Prepared,
    task: Task,
    report: RunReport | Silence,
    checkpoints: Checkpoints,
) -> Trainer:
    config, engine, data = run.config, run.engine, run.data
    windows = training_windows(data.validation, config.dataset)
    parts = RunParts(
        engine=engine,
        train=run.loader,
        validation=fixed_loader(config, data.validation, windows, engine),
        fingerprint=data.fingerprint,
        checkpoints=checkpoints,
    )
    cadence = Cadence(
        run.schedule, run.grad_accum, engine.ranks.size, config.train.log_every, config.checkpoint.ckpt_step
    )
    alarm = CollapseAlarm(config.health.on_collapse)
    return Trainer(task, parts, cadence, report, best=Best(system.best(config)), alarm=alarm)


def _report(
    system: System, run: Prepared, resumed: Resumed | None, run_dir: RunDir, console: Console
) -> RunReport | Silence:
    """The reporter of this rank: `RunReport` on rank 0, else `Silence`."""
    if not run.engine.ranks.is_main:
        return Silence()
    described = run.config.model_dump(mode="json")
    own = {"folder": run_dir.root, "name": run.config.run_name, "config": described}
    others = trackers(run.config.logging, warn=console.warn, **own)
    log = None
    if system.step_log is not None:
        path = run_dir.root.parent / system.step_log
        log = StepLog(path, system.figures, resumed_at=resumed.progress.step if resumed else None)
    more = {"remarks": system.remarks, "trackers": others, "step_log": log, "plots": run.config.logging.plots}
    report = RunReport(console, run_dir, system.figures, **more)
    if resumed:
        report.history.resume(resumed.epoch)
    return report


def _prepare(system: System, config: Any, engine: Engine, console: Console, resumed: Resumed | None) -> Prepared:
    """Loads and validates data and schedule. Raises UserError, with nothing written, if they are
    invalid."""
    data = load_data(config, progress=console.progress)
    loader = train_loader(config, data, engine)
    if config.checkpoint.dir and Path(config.checkpoint.dir).exists() and not Path(config.checkpoint.dir).is_dir():
        raise UserError(f"checkpoint.dir: {config.checkpoint.dir} is not a folder")
    if resumed:
        data.fingerprint.load_state_dict(resumed.data)  # first: later checks depend on the data
    check_installed(config.logging)
    if config.train.compile:
        check_compiler(engine.device)
    processes = engine.processes.total
    grad_accum = resumed.grad_accum(processes) if resumed else config.train.grad_accum
    steps_per_epoch = -(-loader.num_batches // (grad_accum * processes))
    schedule = system.plan(config, steps_per_epoch, progress=resumed.progress if resumed else None)
    system.check(config, data, schedule)
    stage = resumed.stage(schedule) if resumed else schedule.at(0)
    return Prepared(config, engine, data, loader, schedule, grad_accum, stage, fresh=resumed is None)


def _run_folder(config: Any, resumed: Resumed | None, console: Console) -> RunDir:
    """The run folder: a new one with the saved configuration, or that of the resumed run."""
    if resumed and resumed.run_dir:
        run_dir = resumed.run_dir
        remove_leftovers(run_dir.root)
    else:
        run_dir = new_run(Path(config.runs_root), config.run_name, "train")
        write_text(run_dir.config, dump_config(config))
    console.log_to(run_dir.logs, "train")
    console.note(f"run folder {run_dir.root}")
    return run_dir


def _describe(system: System, run: Prepared, start: Any, console: Console, notes: list[str]) -> None:
    """Prints data, model, batch, schedule and memory before training starts."""
    for note in notes:
        console.note(note)
    console.plain(describe_data(run.data))
    parts = (run.data.train, run.data.test)  # may share a source
    console.left_out(
        dict.fromkeys(remark for part in parts for remark in part.remarks),
        dict.fromkeys(pair for part in parts for pair in part.dropped),
    )
    console.plain(system.describe(start))
    processes = run.engine.processes.total
    console.plain(describe_batches(run.config, run.loader, grad_accum=run.grad_accum, processes=processes))
    memory = system.memory_bytes(run, start)
    console.note(
        f"device      {run.engine.describe()}; about {memory / 2**30:.1f} GiB for weights, optimiser and activations"
    )
    console.plain(describe_stages(run.schedule))
    for warning in run.schedule.warnings():
        console.warn(warning)


def _probe_memory(task: Task, run: Prepared, console: Console) -> None:
    """Runs the largest micro-batches, so that out-of-memory errors occur before training."""
    shapes, rate = run.loader.largest_batches(), run.loader.sample_rate
    stages = [stage for stage in run.schedule.stages if stage.end_step > task.stage.start_step]
    peak = probe_memory(task, shapes, stages, sample_rate=rate)
    largest = " and ".join(f"{clips} clips of {samples / rate:.1f} s" for clips, samples in shapes)
    console.note(f"memory: the largest micro-batches ({largest}) fit; {peak / 2**30:.2f} GiB at most")


def _estimate_time(trainer: Trainer, run: Prepared, console: Console) -> None:
    """Times a few real micro-batches and logs the estimated remaining time."""
    stage, loader, schedule = trainer.task.stage, run.loader, run.schedule
    batches = loader.epoch(trainer.clock.epoch, augment=stage.augment)
    per_second = seconds_per_audio_second(trainer.task, batches, sample_rate=loader.sample_rate)
    if per_second is None:
        return
    together = run.engine.processes.total / per_second  # seconds of audio per second
    epoch_seconds = loader.epoch_samples / loader.sample_rate
    left = (schedule.total_steps - trainer.clock.step) / schedule.steps_per_epoch * epoch_seconds / together
    slower = ", later phases may take longer" if stage.phase < schedule.stages[-1].phase else ""
    console.note(
        f"about {duration(left)} of training ({together:.0f} s of audio per second), validation not counted{slower}"
    )


def _final_evaluation(system: System, run: Prepared, run_dir: RunDir, console: Console) -> None:
    """Evaluates the best weights on the full test set."""
    path = run_dir.weights / "best.pt"
    if not run.engine.ranks.from_main(path.exists()):
        console.warn("no epoch had usable validation figures, so there is no best.pt; the last weights are evaluated")
        path = run_dir.weights / "last.pt"
    results = system.results(run, path, console)
    if run.engine.ranks.is_main:
        write_csv(run_dir.results, ("metric", "value"), [(name, f"{value:.8g}") for name, value in results.items()])
    shown = "  ".join(f"{name} {value:.4g}" for name, value in results.items() if name != "frames")
    console.note(f"full test set, {path.name}: {shown}")
    if run.engine.ranks.is_main and run.config.logging.report:
        _write_page(system, run, run_dir, path, console)


def _summarise(run: Prepared, run_dir: RunDir, console: Console) -> None:
    """data.json, for reports and model cards. A run does not end if it cannot be written."""
    try:
        write_summary(run_dir.root / "data.json", summarise(run.data))
    except Exception as error:  # whatever it is, training needs none of it
        _not_written("data.json", error, console)


def _write_page(system: System, run: Prepared, run_dir: RunDir, weights: Path, console: Console) -> None:
    """report.html. A run is not lost if it cannot be written."""
    path = run_dir.root / "report.html"
    try:
        more = system.sections(run, weights, console)
    except Exception as error:  # the page is worth having without them
        _not_written("units in the report", error, console)
        more = []
    try:
        write_run_page(path, run_dir, system.figures, name=run.config.run_name, more=more)
        console.note(f"report      {path}")
    except Exception as error:  # whatever it is, the run is complete
        _not_written("report", error, console)


def _not_written(what: str, error: Exception, console: Console) -> None:
    console.warn(f"no {what}: {error or type(error).__name__}")
    console.detail(traceback.format_exc())
