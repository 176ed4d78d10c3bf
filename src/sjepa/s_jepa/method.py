"""S-JEPA as a system for the train command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchinfo import summary as torchinfo_summary

from sjepa.core.progress import Messages
from sjepa.s_jepa.assembly import Start, assemble, check_fits, estimated_bytes, given_gmm, step_settings
from sjepa.s_jepa.labelled import aligned, labelled_set
from sjepa.s_jepa.masked_prediction import SJEPATask
from sjepa.s_jepa.metrics import FIGURES
from sjepa.s_jepa.network import build_model, new_model
from sjepa.s_jepa.pitch_match import worse_phases
from sjepa.s_jepa.plan import SJEPAStage, plan
from sjepa.s_jepa.schema import SCHEMA
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.step import Forward
from sjepa.s_jepa.units.monitor import PhoneMonitor
from sjepa.s_jepa.units.results import evaluate, saved_targets
from sjepa.s_jepa.units.sections import unit_sections
from sjepa.s_jepa.units.survey import TimedPhones, survey
from sjepa.s_jepa.weights import load_weights
from sjepa.training.data import drawn, training_windows
from sjepa.training.feeding import Data, evaluation_loader
from sjepa.training.figures import Figure
from sjepa.training.report import Report, Section
from sjepa.training.schedule import RunProgress, Schedule
from sjepa.training.system import Prepared

_REPORT_CLIPS, _REPORT_HOURS = 500, 2.0


class SJEPASystem:
    """Masked prediction of soft cluster posteriors in two phases."""

    name, schema, figures = "s-jepa", SCHEMA, FIGURES
    state = ("model", "optimizer", "targets", "epoch_sums", "recent_sums")
    step_log = None

    def owns(self, config: Config) -> bool:
        return True

    def plan(
        self, config: Config, steps_per_epoch: int, *, progress: RunProgress | None = None
    ) -> Schedule[SJEPAStage]:
        return plan(config, steps_per_epoch, progress=progress)

    def check(self, config: Config, data: Data, schedule: Schedule[SJEPAStage]) -> None:
        check_fits(config, data, schedule)

    def start(self, run: Prepared, *, note: Callable[[str], None]) -> Start:
        stage = run.stage
        assert isinstance(stage, SJEPAStage)
        if not run.fresh:
            return Start(new_model(run.config, stage), None)
        return Start(build_model(run.config, stage, note=note), given_gmm(run.config, stage))

    def describe(self, start: Start) -> str:
        """Table of modules with parameter counts; totals of the encoder and the whole network."""
        network = start.network
        table = str(torchinfo_summary(network, depth=2, col_names=("num_params", "params_percent"), verbose=0))
        encoder, whole = (
            sum(parameter.numel() for parameter in module.parameters()) for module in (network.encoder, network)
        )
        return f"{table}\nencoder {encoder:,} parameters; with predictor and head {whole:,}"

    def memory_bytes(self, run: Prepared, start: Start) -> int:
        return estimated_bytes(run, start.network)

    def task(self, run: Prepared, start: Start, folder: Path, report: Report) -> SJEPATask:
        judge = run.engine.ranks.main_first(lambda: _judge(run, report))
        return assemble(run, start, folder, report, judges=() if judge is None else (judge,))

    def copies(self, config: Config, folder: Path) -> None:
        """None."""

    def best(self, config: Config) -> Figure:
        return next(figure for figure in FIGURES if figure.name == config.best.metric)

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return worse_phases(rows)

    def results(self, run: Prepared, weights: Path, messages: Messages) -> dict[str, float]:
        loader = evaluation_loader(run.config, run.data.test.clips, run.engine)
        batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="test set")
        settings = step_settings(run.config)
        return evaluate(run.engine, load_weights(weights), batches, settings=settings, warn=messages.warn)

    def sections(self, run: Prepared, weights: Path, messages: Messages) -> list[Section]:
        """Entropies and units, on at most 500 test clips and two hours."""
        clips, saved = run.data.test.clips, load_weights(weights)
        kept = drawn(clips, min(len(clips), _REPORT_CLIPS), run.config.seed, "report")
        hours = clips.length_N[kept].cumsum() / clips.sample_rate / 3600
        clips = clips.subset(kept[: max(1, int((hours <= _REPORT_HOURS).sum()))])
        loader = evaluation_loader(run.config, clips, run.engine, alone=True)
        windows = loader.dataset.windows
        batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="units")
        forward = Forward(run.engine, run.engine.to_device(saved.model), step_settings(run.config))
        phones = TimedPhones([[] for _ in range(len(clips))], windows, run.config.geometry)
        found = survey(forward, saved_targets(run.engine, saved), batches, phones=phones)
        return unit_sections(found, clips, windows, run.config.geometry)


def _judge(run: Prepared, report: Report) -> PhoneMonitor | None:
    """The phone monitor of the validation clips; None without phones in `evaluation.labels`."""
    config = run.config
    if config.evaluation.labels is None:
        return None
    clips = run.data.validation
    own = labelled_set(config, report, clips, split="test")
    if config.evaluation.align:
        (own,) = aligned(config, run.engine, report, [own])
    if not any(own.labels.spans):
        report.note(
            "evaluation.labels: no phones with times (evaluation.align finds them), so phone metrics are not computed"
        )
        return None
    return PhoneMonitor(TimedPhones(own.labels.spans, training_windows(clips, config.dataset), config.geometry))


S_JEPA = SJEPASystem()
