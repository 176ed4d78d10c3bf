"""Builds the parts of an S-JEPA training task from its configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sjepa.core.errors import UserError
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import SpaceSettings
from sjepa.modules.ema import switched_decay
from sjepa.s_jepa.activation_memory import Load, training_bytes
from sjepa.s_jepa.fitting import LayerEffectiveRanks, MixtureFitter, measure_bands
from sjepa.s_jepa.masked_prediction import SJEPATask, TaskParts
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.optimizer import build_optimizer
from sjepa.s_jepa.pitch_match import PitchMatch
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.sizes import hyperparameters
from sjepa.s_jepa.step import StepSettings
from sjepa.s_jepa.target_maker import TargetMaker, target_source
from sjepa.s_jepa.targets.online import OnlineSettings
from sjepa.s_jepa.validation import JUDGED_BATCHES, Judge
from sjepa.s_jepa.weights_folder import WeightsFolder
from sjepa.training.compilation import compile_layers
from sjepa.training.data import tiling, training_windows
from sjepa.training.feeding import Data
from sjepa.training.frame_sample import training_frames
from sjepa.training.memory import weight_copies
from sjepa.training.report import Report
from sjepa.training.schedule import Schedule
from sjepa.training.system import Prepared


@dataclass
class Start:
    """The initial network and, if `gmm.path` is set, the fitted mixture of the first stage."""

    network: SJEPA
    given: DiagonalGMM | None

    def take(self) -> SJEPA:
        """Hands the network over: with FSDP a later one replaces it, and nothing else may keep its
        memory."""
        network = self.network
        del self.network
        return network


def step_settings(config: Config) -> StepSettings:
    values = hyperparameters(config.model.size, config.model.overrides)
    return StepSettings(
        config.seed,
        config.masking.mask_ratio,
        config.masking.mask_length,
        config.train.grad_clip_norm,
        values.layer_drop,
        values.num_layers,
        config.train.visible_weight,
        geometry=config.geometry,
    )


def estimated_bytes(run: Prepared, network: SJEPA) -> int:
    """Estimated training memory: largest micro-batch of an epoch, largest head of the schedule."""
    stages, config = run.schedule.stages, run.config
    clips, samples = max(run.loader.largest_batches(), key=lambda shape: shape[0] * shape[1])
    load = Load(
        clips=clips,
        samples=samples,
        mask_ratio=config.masking.mask_ratio,
        visible=any(stage.visible_loss for stage in stages),
        averaged=any(stage.targets == "online" for stage in stages),
        autocast=run.engine.autocast_dtype,
        copies=weight_copies(config.train.strategy, run.engine.processes.total),
        recomputes=config.train.activation_checkpointing,
    )
    return training_bytes(replace(network.shape, num_clusters=max(stage.num_clusters for stage in stages)), load)


def given_gmm(config: Config, stage: SJEPAStage) -> DiagonalGMM | None:
    """The mixture of `gmm.path`, or None. Raises UserError if it does not match the stage."""
    if config.gmm.path is None:
        return None
    settings = space_settings(config, stage)
    if settings.dimensions is not None or settings.entropy_bits is not None:
        raise UserError(
            "gmm.path: a mixture's file holds neither projection nor temperature; leave out gmm.dimensions and "
            "gmm.entropy_bits of that phase, or gmm.path"
        )
    source, width = target_source(stage, hyperparameters(config.model.size, config.model.overrides).width)
    wanted = (settings.width(width), settings.describe(source))
    gmm = DiagonalGMM.load(Path(config.gmm.path))
    if (gmm.num_components, gmm.num_features, gmm.features) != (stage.num_clusters, *wanted):
        raise UserError(
            f"gmm.path: {config.gmm.path} has {gmm.num_components} components over {gmm.num_features} features "
            f"({gmm.features or 'unnamed'}), not {stage.num_clusters} (gmm.num_clusters) over {wanted[0]} ({wanted[1]})"
        )
    return gmm


def space_settings(config: Config, stage: SJEPAStage) -> SpaceSettings:
    """Preprocessing of a stage's features before clustering: normalisation, splicing, projection,
    temperature."""
    gmm = config.gmm
    if stage.targets == "mfcc":
        return SpaceSettings(gmm.normalise, gmm.context, gmm.dimensions, gmm.entropy_bits)
    return SpaceSettings(gmm.normalise, 0, gmm.dimensions_phase2, gmm.entropy_bits_phase2)


def check_fits(config: Config, data: Data, schedule: Schedule[SJEPAStage]) -> None:
    """Raises UserError if a mixture of the plan has more components than frames to fit them on."""
    if config.gmm.normalise == "speaker" and data.stream is not None:
        raise UserError("gmm.normalise: speaker does not go with dataset.hf.streaming, whose rows have no speaker")
    if config.gmm.normalise == "speaker" and not known_speakers(data):
        raise UserError(
            "gmm.normalise: speaker needs a manifest with a field speaker as dataset.train_path; no clip of the training "
            "set has one"
        )
    frames = int(config.geometry.frames(tiling(data.train.clips, config.dataset).length_N).sum())
    width = hyperparameters(config.model.size, config.model.overrides).width
    for stage in schedule.stages:
        settings, (_, source) = space_settings(config, stage), target_source(stage, width)
        spliced = source * (2 * settings.context + 1)
        if settings.dimensions is not None and settings.dimensions >= min(spliced, stage.num_clusters):
            name = "dimensions" if stage.targets == "mfcc" else "dimensions_phase2"
            raise UserError(
                f"gmm.{name}: {settings.dimensions} directions are too many for {spliced} features and {stage.num_clusters} "
                f"components: give fewer than either"
            )
        usable = min(frames, config.gmm.fit_frames)
        if usable < stage.num_clusters:
            key = "num_clusters" if stage.start_step == 0 else "num_clusters_phase2"
            raise UserError(
                f"gmm.{key}: {stage.num_clusters} components cannot be fitted on {usable:,} frames "
                f"(gmm.fit_frames: {config.gmm.fit_frames}; the training set has {frames:,})"
            )


def known_speakers(data: Data) -> list[int]:
    """Sorted keys of the speakers in the training manifest."""
    clips = data.train.clips
    return sorted({clips.speaker(position) for position in range(len(clips))} - {0})


def hold_steps(config: Config, schedule: Schedule[SJEPAStage]) -> int | None:
    """Updates per round of phase 2 (`gmm.hold_steps`); None without rounds."""
    wanted = config.gmm.hold_steps
    if wanted is None or wanted > 1:
        return None if wanted is None else int(wanted)
    steps = sum(stage.end_step - stage.start_step for stage in schedule.stages if stage.phase == 2)
    return max(1, math.ceil(wanted * steps))


def target_maker(run: Prepared, folder: Path, report: Report) -> TargetMaker:
    """The TargetMaker of a run. Every fitted mixture is saved in `folder`."""
    config, engine = run.config, run.engine
    settings, frames = config.gmm, training_frames(config, run.data, engine)

    def keep(gmm: DiagonalGMM, stage: SJEPAStage) -> None:
        if engine.ranks.is_main:
            gmm.save(folder / ("gmm.pt" if stage.start_step == 0 else f"gmm_phase{stage.phase}.pt"))

    decay = partial(
        switched_decay,
        fast=settings.ema_decay_fast,
        slow=settings.ema_decay_slow,
        switch_every=settings.ema_switch_every,
    )
    return TargetMaker(
        engine=engine,
        space=partial(space_settings, config),
        fitter=MixtureFitter(frames, settings.fit_frames, settings.kmeans_iters, settings.em_iters, report),
        layer_effective_ranks=LayerEffectiveRanks(frames),
        online=OnlineSettings(
            settings.param_decay,
            decay,
            settings.layer_check_every if settings.auto_layer else None,
            hold_steps(config, run.schedule),
        ),
        first_layer=settings.ema_layer,
        layer_smoothing=settings.erank_decay,
        refit_on_switch=settings.refit_on_switch,
        keep=keep,
        speakers=known_speakers(run.data) if settings.normalise == "speaker" else (),
        by_predictions=settings.projection_phase2 == "predictions",
    )


def assemble(run: Prepared, start: Start, folder: Path, report: Report, *, judges: Sequence[Judge]) -> SJEPATask:
    """The task at the start of the run's stage. Targets are fitted in a fresh run; on resume they
    are blank until their state is loaded."""
    config, engine, network = run.config, run.engine, run.engine.to_device(start.take())
    if config.train.compile:
        compile_layers(network.transformer_layers())
    frontend = network.encoder.feature_extractor
    if run.fresh and config.init_weights is None and frontend.mel_statistics in ("corpus", "both"):
        measure_bands(training_frames(config, run.data, engine), frontend)
    maker, stage = target_maker(run, folder, report), run.stage
    assert isinstance(stage, SJEPAStage)
    targets = maker.fitted(stage, network, given=start.given) if run.fresh else maker.blank(stage, network.encoder)
    clips = len(training_windows(run.data.validation, config.dataset))
    seen = min(clips, JUDGED_BATCHES * config.train.batch_size)
    build = partial(
        build_optimizer,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        layer_decay=config.optimizer.layer_decay,
        scales_loss=engine.scales_loss,
    )
    parts = TaskParts(
        engine=engine,
        build_optimizer=build,
        maker=maker,
        settings=step_settings(config),
        weights=WeightsFolder(
            folder / "weights", config.model_dump(mode="json", by_alias=True), writes=engine.ranks.is_main
        ),
        judges=(PitchMatch(seen, config.geometry), *judges),
    )
    return SJEPATask(parts, network, targets, stage, report)
