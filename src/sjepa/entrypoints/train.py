"""trainsjepa."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sjepa.config.load import dump_config
from sjepa.config.schema import Config
from sjepa.core.distributed import Engine, Processes
from sjepa.core.errors import SharedError, UserError
from sjepa.core.files import remove_leftovers, write_text
from sjepa.dataset.loader import worker_killed
from sjepa.entrypoints.labelled import aligned, labelled_set
from sjepa.entrypoints.resumed import Resumed, checkpoint_folder, run_to_resume
from sjepa.entrypoints.stopping import end_of_one, stopping_on_signals, told_to_stop
from sjepa.evaluation.evaluate import evaluate, write_results
from sjepa.evaluation.monitor import PhoneMonitor
from sjepa.evaluation.survey import TimedPhones
from sjepa.reporting.console import Console, duration
from sjepa.reporting.report import RunReport, Silence
from sjepa.reporting.run_dir import RunDir, new_run
from sjepa.reporting.summary import describe_batches, describe_data, describe_model, describe_plan
from sjepa.reporting.tensorboard import event_writer
from sjepa.training.assembly import (
    Prepared,
    RunFiles,
    assemble,
    check_fits,
    estimated_bytes,
    given_gmm,
    plan_run,
    step_settings,
)
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.compilation import check_compiler
from sjepa.training.data import training_windows
from sjepa.training.estimate import probe_memory, seconds_per_audio_second
from sjepa.training.feeding import evaluation_loader, load_data, train_loader
from sjepa.training.network import build_model, new_model
from sjepa.training.parts import Interrupted
from sjepa.training.trainer import Trainer
from sjepa.weights import load_weights


def train(config: Config, *, dry_run: bool = False) -> int:
    """Trains as configured; with `dry_run` only says what it would do. Returns the exit code."""
    processes = Processes(config.train.devices, config.train.num_nodes)
    engine = Engine(
        device=config.device,
        precision=config.train.precision,
        processes=processes,
        strategy=config.train.strategy,
        launch=not dry_run,
    )
    ranks = engine.ranks
    console = Console(quiet=not ranks.is_main)
    notes: list[str] = []
    resume = config.checkpoint.resume and not dry_run
    try:
        resumed = ranks.only_main(lambda: run_to_resume(config, console)) if resume else None
        run = ranks.main_first(lambda: _prepare(config, engine, console, resumed, note=notes.append))
        if dry_run:
            _describe(config, console, run, notes)
            return 0
        _refuse_other_data(run)
        run_dir = ranks.only_main(lambda: _run_folder(config, resumed, console))
        _describe(config, console, run, notes)
        return _run(config, run, resumed, run_dir, console)
    except Exception as error:
        if ranks.size == 1 or (ranks.is_main and isinstance(error, UserError)):
            raise
        return end_of_one(error, ranks)


def _refuse_other_data(run: Prepared) -> None:
    """Processes that see other files would wait for each other for ever."""
    own = (run.data.fingerprint.state_dict(), run.loader.num_batches)
    if len({repr(seen) for seen in run.engine.ranks.each(own)}) > 1:
        raise SharedError("dataset.train_path: the processes see different clips; give all machines the same files")


def _run(config: Config, run: Prepared, resumed: Resumed | None, run_dir: RunDir, console: Console) -> int:
    """From the first update to the figures of the test set."""
    is_main = run.engine.ranks.is_main
    report = run.engine.ranks.main_first(lambda: _report(config, run, resumed, run_dir, console))
    files = RunFiles(run_dir.weights, checkpoint_folder(config, run_dir), run_dir.gmm)
    judge = run.engine.ranks.main_first(lambda: _judge(config, run, console))
    trainer = assemble(config, run, files, report, judges=() if judge is None else (judge,))
    if resumed:
        Checkpoints.load(resumed.checkpoint, trainer.state)
        report.note(f"going on from {resumed.checkpoint.name}: epoch {trainer.clock.epoch}, step {trainer.clock.step}")
    if config.train.probe_memory:
        _probe_memory(trainer, run, console)
    _estimate_time(trainer, run, console)
    console.run_started(run.schedule.epochs, run.schedule.total_steps)
    try:
        with stopping_on_signals(trainer):
            trainer.run()
        report.finished()
    except Interrupted as stop:
        return told_to_stop(stop.signal_number, warn=console.warn) if is_main else 0
    except RuntimeError as error:
        raise worker_killed(error, "checkpoint.resume=true goes on from the last checkpoint") from error.__cause__
    finally:
        report.draw()
        report.close()
    _final_evaluation(config, run, run_dir, console)
    best = trainer.best
    which = f"best.pt is epoch {best.epoch}, {config.best.metric} {best.value:.4f}" if best.epoch >= 0 else "no best.pt"
    console.note(f"done: {run_dir.weights} ({which})")
    return 0


def _judge(config: Config, run: Prepared, console: Console) -> PhoneMonitor | None:
    """Who follows the run by the labels of its validation clips, if `evaluation.labels` has phones of them."""
    if config.evaluation.labels is None:
        return None
    clips = run.data.validation
    own = labelled_set(config, console, clips, split="test")
    if config.evaluation.align:
        (own,) = aligned(config, run.engine, console, [own])
    if not any(own.labels.spans):
        console.note("evaluation.labels: no phones with times (evaluation.align finds them), so none are followed")
        return None
    return PhoneMonitor(
        TimedPhones(own.labels.spans, training_windows(clips, config.dataset), run.model.encoder.geometry)
    )


def _report(
    config: Config, run: Prepared, resumed: Resumed | None, run_dir: RunDir, console: Console
) -> RunReport | Silence:
    """Who listens to this process."""
    if not run.engine.ranks.is_main:
        return Silence()
    report = RunReport(console, run_dir, events=event_writer(run_dir.root) if config.logging.tensorboard else None)
    if resumed:
        report.history.resume(resumed.epoch)
    return report


def _prepare(
    config: Config, engine: Engine, console: Console, resumed: Resumed | None, *, note: Callable[[str], None]
) -> Prepared:
    """Reads and checks everything that a run needs. Raises UserError, with nothing written, if something does not fit."""
    cache_folder = Path(config.runs_root) / config.run_name / "cache"
    data = load_data(config, cache_folder=cache_folder, progress=console.progress)
    loader = train_loader(config, data, engine)
    if config.checkpoint.dir and Path(config.checkpoint.dir).exists() and not Path(config.checkpoint.dir).is_dir():
        raise UserError(f"checkpoint.dir: {config.checkpoint.dir} is not a folder")
    if resumed:
        data.fingerprint.load_state_dict(resumed.data)  # before anything else can be wrong because of it
    if config.train.compile:
        check_compiler(engine.device)
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
        fresh=resumed is None,
    )


def _run_folder(config: Config, resumed: Resumed | None, console: Console) -> RunDir:
    """The folder to write to: a new one with the configuration in it, or that of the run to go on with."""
    if resumed is None:
        run_dir = new_run(Path(config.runs_root), config.run_name, "train")
        write_text(run_dir.config, dump_config(config))
    else:
        run_dir = resumed.run_dir
        remove_leftovers(run_dir.root)
    console.log_to(run_dir.logs, "train")
    console.note(f"run folder {run_dir.root}")
    return run_dir


def _describe(config: Config, console: Console, run: Prepared, notes: list[str]) -> None:
    """Data, model, batch, plan and memory, before anything costs time."""
    for note in notes:
        console.note(note)
    console.plain(describe_data(run.data))
    parts = (run.data.train, run.data.test)  # which may be of one source
    console.left_out(
        dict.fromkeys(remark for part in parts for remark in part.remarks),
        dict.fromkeys(pair for part in parts for pair in part.dropped),
    )
    console.plain(describe_model(run.model))
    processes = run.engine.processes.total
    console.plain(describe_batches(config, run.loader, grad_accum=run.grad_accum, processes=processes))
    memory = estimated_bytes(config, run)
    console.note(
        f"device      {run.engine.describe()}; about {memory / 2**30:.1f} GiB for weights, optimiser and activations"
    )
    console.plain(describe_plan(run.schedule))
    for warning in run.schedule.warnings():
        console.warn(warning)


def _probe_memory(trainer: Trainer, run: Prepared, console: Console) -> None:
    """Runs what will take most memory, so that it runs out now or never."""
    parts, shapes = trainer.parts, run.loader.largest_batches()
    later = [stage for stage in run.schedule.stages if stage.phase > trainer.stage.phase][:1]
    peak = probe_memory(
        parts.engine,
        parts.model,
        parts.optimizer,
        [parts.targets, *(parts.maker.blank(stage, parts.network.encoder) for stage in later)],
        shapes,
        visible=any(stage.visible_loss for stage in run.schedule.stages),
        settings=parts.settings,
    )
    rate = run.loader.sample_rate
    largest = " and ".join(f"{clips} clips of {samples / rate:.1f} s" for clips, samples in shapes)
    console.note(f"memory: the largest micro-batches ({largest}) fit; {peak / 2**30:.2f} GiB at most")


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
    epoch_seconds = loader.epoch_samples / loader.sample_rate
    left = (schedule.total_steps - trainer.clock.step) / schedule.steps_per_epoch * epoch_seconds / together
    slower = ", phase 2 takes somewhat longer" if stage.phase < schedule.stages[-1].phase else ""
    console.note(
        f"about {duration(left)} of training ({together:.0f} s of audio per second), validation not counted{slower}"
    )


def _final_evaluation(config: Config, run: Prepared, run_dir: RunDir, console: Console) -> None:
    """The best weights on the whole test set."""
    path = run_dir.weights / "best.pt"
    if not run.engine.ranks.from_main(path.exists()):
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
