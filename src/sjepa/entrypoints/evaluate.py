"""The command `evalsjepa`."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from sjepa.config.dataset import Dataset
from sjepa.config.load import dump_config
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_csv, write_text
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.batch import Failure, Sample, collate
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Loader, worker_killed
from sjepa.entrypoints.evaluated import write_record
from sjepa.entrypoints.probes import probe_rows, short_name
from sjepa.entrypoints.systems import SYSTEMS
from sjepa.evaluation.features import ClipBatches
from sjepa.evaluation.labels import Labels, Span
from sjepa.evaluation.scores import ProbeRow, write_rows
from sjepa.reporting.console import Console
from sjepa.reporting.history import read_history
from sjepa.reporting.page import paragraph, table
from sjepa.reporting.plots import layers_picture, save_figure
from sjepa.reporting.run_dir import RunDir, new_run
from sjepa.reporting.run_page import run_of_weights, write_run_page
from sjepa.reporting.tables import probe_table
from sjepa.s_jepa.assembly import step_settings
from sjepa.s_jepa.labelled import labelled_sets
from sjepa.s_jepa.metrics import FIGURES
from sjepa.s_jepa.ownership import settled
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.step import Forward
from sjepa.s_jepa.units.dump import encoder_reader, target_reader, units, write_dump
from sjepa.s_jepa.units.pictures import (
    Utterance,
    components_picture,
    entropies_picture,
    probes_picture,
    utterance_picture,
)
from sjepa.s_jepa.units.readings import read_encoder
from sjepa.s_jepa.units.results import evaluate, saved_targets
from sjepa.s_jepa.units.sections import probe_section, unit_sections
from sjepa.s_jepa.units.survey import Survey, TimedPhones, survey
from sjepa.s_jepa.weights import Weights, load_weights
from sjepa.tokenizer.extractor import is_token_encoder
from sjepa.training.data import load_clips
from sjepa.training.feeding import evaluation_loader, evaluation_set
from sjepa.training.figures import Figure
from sjepa.training.report import Section

_EFFECTIVE_RANK_COLUMNS = ("epoch", "phase", "audio_hours")
_SHOWN_SECONDS = (2.0, 5.0)  # length of the plotted clip, if none is configured


@dataclass(frozen=True)
class Evaluation:
    """Shared state of an evaluation; `shown` is the index of the plotted clip."""

    config: Config
    engine: Engine
    console: Console
    run_dir: RunDir
    clips: Clips
    labels: Labels
    spans: list[list[Span]]
    shown: int

    @cached_property
    def loader(self) -> Loader:
        return evaluation_loader(self.config, self.clips, self.engine)

    @cached_property
    def phones(self) -> TimedPhones:
        return TimedPhones(self.spans, self.loader.dataset.windows, self.config.geometry)


def evaluate_weights(config: Config, *, overridden: Collection[str] = ()) -> int:
    """Writes runs/<run_name>/eval[N]/: results.csv, plots, and the outputs of `probe` and
    `dump`. Model, masking and mixture are those of the weights file. `overridden`: keys set on
    the command line. Returns the exit code."""
    try:
        return _evaluate(config, overridden)
    except RuntimeError as error:
        raise worker_killed(error, "Run it again") from error.__cause__


def _evaluate(config: Config, overridden: Collection[str]) -> int:
    if config.init_weights is None:
        raise UserError("init_weights: name the weights to evaluate (best.pt of a run)")
    console = Console()
    engine = Engine(device=config.device, precision=config.train.precision, launch=False)
    if engine.processes.total > 1:
        raise UserError("one process is enough here: start it without torchrun or srun, or with one task")
    weights, path = None, Path(config.init_weights)
    what = "a Hugging Face folder" if path.is_dir() else "weights of a tokenizer" if is_token_encoder(path) else None
    said = f"{path}: {what}, for probes alone"
    if what is None:
        weights = load_weights(path)
        config, said = settled(config, weights, overridden)
    elif config.dump.path is not None:
        raise UserError(f"dump.path: {path} is {what}, which has no units to write")
    elif not config.probe.tasks:
        raise UserError(
            f"init_weights: {path} is {what}, without a mixture to measure against; probe.tasks names what its features can "
            "be probed for"
        )
    clip_set = evaluation_set(config, progress=console.progress)
    # validate everything before creating the folder
    sets = labelled_sets(config, engine, console, clip_set.clips)
    labels = sets[0].labels
    spans = labels.spans
    shown, dumped = _shown_clip(config, clip_set.clips), _dumped_clips(config, console)
    probes = None
    if config.probe.tasks:
        probes = probe_rows(config, engine, console, sets, weights)
    run_dir = new_run(Path(config.runs_root), config.run_name, "eval")
    console.log_to(run_dir.logs, "eval")
    write_text(run_dir.config, dump_config(config))
    write_record(run_dir.root, path, features=short_name(path))
    console.note(said)
    console.plain(f"test        {clip_set.describe()}")
    console.left_out(clip_set.remarks, clip_set.dropped)
    evaluation = Evaluation(config, engine, console, run_dir, clip_set.clips, labels, spans, shown)
    sections = []
    if weights is not None:
        sections += _measure(evaluation, weights)
        if dumped is not None:
            _dump(evaluation, weights, dumped)
    if probes is not None:
        rows: list[ProbeRow] = []
        for row in probes:
            rows.append(row)
            write_rows(run_dir.root / "probes.csv", rows)  # rewritten after each row: kept if a later probe fails
        console.plain(probe_table(rows))
        if config.evaluation.figures:
            save_figure(probes_picture(rows), run_dir.root / "probes.jpg")
        sections.append(probe_section(rows))
    _write_page(evaluation, path, sections)
    console.note(f"written to {run_dir.root}")
    return 0


def _write_page(evaluation: Evaluation, weights: Path, sections: list[Section]) -> None:
    """report.html in the evaluation's folder: the run that the weights belong to, if there is one,
    and these sections. That of the best weights on the run's own test set is the run's report too,
    unless probes would be lost."""
    dataset, run = evaluation.config.dataset, run_of_weights(weights)
    tested = "the clips that training held out" if dataset.test_path is None else dataset.test_path
    about = paragraph(f"Of {weights.name}, on {len(evaluation.clips):,} clips: {tested}.")
    sections = [Section(part.title, about + part.body) for part in sections]
    path = evaluation.run_dir.root / "report.html"
    name = run.root.parent.name if run else weights.name
    try:
        write_run_page(path, run, _figures(weights), name=name, more=sections)
        evaluation.console.note(f"report      {path}")
        if run is not None and weights.name == "best.pt" and _is_own_test(dataset, run):
            own = run.root / "report.html"
            if evaluation.config.probe.tasks or not own.exists() or "<h2>Probes</h2>" not in own.read_text("utf-8"):
                write_text(own, path.read_text(encoding="utf-8"))
    except Exception as error:  # whatever it is, the evaluation is complete
        evaluation.console.warn(f"no report: {error or type(error).__name__}")
        evaluation.console.detail(traceback.format_exc())


def _is_own_test(dataset: Dataset, run: RunDir) -> bool:
    """Whether this is the whole test set of a run."""
    used = yaml.safe_load(run.config.read_text(encoding="utf-8")).get("dataset") or {}
    same = [_resolved(used.get(name)) == _resolved(getattr(dataset, name)) for name in ("test_path", "test_h5")]
    return dataset.max_test_samples is None and used.get("use_hdf5") == dataset.use_hdf5 and all(same)


def _resolved(paths: object) -> list[Path]:
    return [Path(str(path)).resolve() for path in (paths if isinstance(paths, list) else [paths])]


def _figures(weights: Path) -> Sequence[Figure]:
    """The metrics in the history of the run that weights belong to."""
    return SYSTEMS["tokenizer encoder"].figures if weights.is_file() and is_token_encoder(weights) else FIGURES


def _measure(evaluation: Evaluation, weights: Weights) -> list[Section]:
    """Writes results.csv, components.csv, erank.csv and their plots. Returns sections for the
    report."""
    config, engine, console, loader = evaluation.config, evaluation.engine, evaluation.console, evaluation.loader
    folder, settings = evaluation.run_dir.root, step_settings(config)
    batches = console.progress(loader.epoch(0), total=loader.num_rounds, label="test set")
    results = evaluate(engine, weights, batches, settings=settings, warn=console.warn)
    forward = Forward(engine, engine.to_device(weights.model), settings)
    batches = console.progress(loader.epoch(0), total=loader.num_rounds, label="every frame")
    found = survey(forward, saved_targets(engine, weights), batches, phones=evaluation.phones)
    results |= found.figures()
    rows = [(name, f"{value:.8g}") for name, value in results.items()]
    write_csv(evaluation.run_dir.results, ("metric", "value"), rows)
    console.plain("\n".join(f"{name:<26} {value:.6g}" for name, value in results.items()))
    found.components.write(folder / "components.csv")
    if config.evaluation.figures:
        _draw(evaluation, weights, found)
    try:
        _write_effective_ranks(Path(str(config.init_weights)).resolve().parent.parent / "history.csv", folder, config)
    except UserError as error:
        console.warn(f"no erank.csv: {error}")
    shown = table(("metric", "value"), [(name, f"{value:.5g}") for name, value in results.items()])
    more = unit_sections(found, evaluation.clips, loader.dataset.windows, config.geometry)
    return [Section("Evaluation", shown), *more]


def _write_effective_ranks(history: Path, folder: Path, config: Config) -> None:
    """Writes erank.csv and erank.jpg from the history of the run that the weights belong to.
    Raises UserError if there is none."""
    if not history.exists():
        raise UserError(f"effective ranks over training are in a run's history, and there is no {history}")
    rows = read_history(history)
    names = [name for name in rows[-1] if name in _EFFECTIVE_RANK_COLUMNS or name.startswith("erank_")] if rows else []
    if len(names) <= len(_EFFECTIVE_RANK_COLUMNS):
        raise UserError(f"{history}: not the history of a run")
    write_csv(folder / "erank.csv", names, [[str(row[name]) for name in names] for row in rows])
    if config.evaluation.figures:
        erank, score = (next(f for f in FIGURES if f.name == name) for name in ("erank", "layer_score"))
        save_figure(layers_picture(rows, erank, beside=score), folder / "erank.jpg")


def _draw(evaluation: Evaluation, weights: Weights, found: Survey) -> None:
    folder = evaluation.run_dir.root
    readings = [
        ("Encoder, nothing masked", found.encoder),
        ("Predictor, at masked frames", found.predictor),
        ("Targets", found.targets),
    ]
    save_figure(entropies_picture(readings), folder / "entropy_hist.jpg")
    if found.components.has_phones:
        save_figure(components_picture(found.components), folder / "components.jpg")
    position = evaluation.shown
    longest = round(evaluation.config.dataset.max_seconds * evaluation.clips.sample_rate)
    length = min(int(evaluation.clips.length_N[position]), longest)
    try:
        waveform = evaluation.clips.read(position, length=length)
    except DecodeError as error:
        evaluation.console.warn(f"no utterance.jpg: {evaluation.clips.name(position)}: {error}")
        return
    batch = collate([(Sample(waveform, waveform, position, 0, ""), [])]).to(evaluation.engine.device)
    posterior_TK = (
        read_encoder(evaluation.engine, weights.model, batch, weights.model.encoder.geometry).exp().cpu().numpy()
    )
    shown = Utterance(
        evaluation.clips.name(position),
        waveform,
        posterior_TK,
        evaluation.labels.text(position),
        evaluation.spans[position],
        weights.model.encoder.geometry,
    )
    save_figure(utterance_picture(shown), folder / "utterance.jpg")


def _shown_clip(config: Config, clips: Clips) -> int:
    wanted = config.evaluation.utterance
    if wanted is not None:
        for position in range(len(clips)):
            if clips.name(position).endswith(wanted):
                return position
        raise UserError(f"evaluation.utterance: no clip's name ends with {wanted!r} (one is {clips.name(0)!r})")
    low, high = (seconds * clips.sample_rate for seconds in _SHOWN_SECONDS)
    good = np.flatnonzero((clips.length_N >= low) & (clips.length_N <= high))
    return int(generator(config.seed, "utterance").choice(good if len(good) else len(clips)))


def _dumped_clips(config: Config, console: Console) -> Clips | None:
    """The clips at `dump.path`; None if it is not set."""
    if config.dump.path is None:
        return None
    return load_clips(config, config.dump.path, "dump.path", progress=console.progress).clips


def _dump(evaluation: Evaluation, weights: Weights, clips: Clips) -> None:
    """Writes units and posteriors of every frame of `clips` to dump/."""
    config, engine, console = evaluation.config, evaluation.engine, evaluation.console
    loader = evaluation_loader(config, clips, engine)
    read = encoder_reader(engine, engine.to_device(weights.model))
    if config.dump.source == "targets":
        read = target_reader(engine, saved_targets(engine, weights))
    batches = console.progress(loader.epoch(0), total=loader.num_rounds, label="dump")
    data = ClipBatches(batches, loader.dataset.windows, len(clips))
    found = units(read, data, top_k=config.dump.top_k, warn=lambda failure: _skipped(console, failure))
    folder = evaluation.run_dir.root / "dump"
    written, frames = write_dump(folder, clips, found)
    console.note(f"{folder}: units of {written:,} clips, {frames:,} frames")


def _skipped(console: Console, failure: Failure) -> None:
    console.warn(f"skipped {failure.name}: {failure.reason}")
