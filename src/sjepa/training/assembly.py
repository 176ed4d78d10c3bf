"""From a configuration to the components of a run: with `feeding.py` the reader of the whole configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sjepa.config.schedule import RunProgress, Schedule, Stage, plan
from sjepa.config.schema import Config
from sjepa.config.sizes import hyperparameters
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.dataset.loader import EpochLoader
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import SpaceSettings
from sjepa.model import SJEPA
from sjepa.modules.ema import switched_decay
from sjepa.targets.online import OnlineSettings
from sjepa.training.best import Best
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.collapse import CollapseAlarm
from sjepa.training.compilation import compile_layers
from sjepa.training.data import (
    tiling,
    training_windows,
)
from sjepa.training.estimate import training_bytes, weight_copies
from sjepa.training.feeding import Data, fixed_loader
from sjepa.training.fitting import LayerRanks, MixtureFitter, TrainingFrames, measure_bands
from sjepa.training.keeper import WeightsFolder
from sjepa.training.optimizer import build_optimizer
from sjepa.training.parts import Parts, Plan
from sjepa.training.pitch_match import PitchMatch
from sjepa.training.report import Report
from sjepa.training.step import StepSettings
from sjepa.training.trainer import Trainer
from sjepa.training.transition import TargetMaker, target_source
from sjepa.training.validation import JUDGED_BATCHES, Judge


@dataclass(frozen=True)
class RunFiles:
    """Where a run puts its weights, its checkpoints and the mixture that it starts with."""

    weights: Path
    checkpoints: Path
    gmm: Path


@dataclass(frozen=True)
class Prepared:
    """A run that was checked in every part and has written nothing yet. Not `fresh`: its state is still to be loaded.
    `given` is a mixture for the first stage that need not be fitted."""

    engine: Engine
    data: Data
    loader: EpochLoader
    schedule: Schedule
    grad_accum: int
    stage: Stage
    model: SJEPA
    given: DiagonalGMM | None
    fresh: bool


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


def estimated_bytes(config: Config, run: Prepared) -> int:
    """Memory of training on the largest micro-batch of an epoch, with the largest head of the schedule."""
    stages = run.schedule.stages
    clips, samples = max(run.loader.largest_batches(), key=lambda shape: shape[0] * shape[1])
    largest = replace(run.model.shape, num_clusters=max(stage.num_clusters for stage in stages))
    return training_bytes(
        largest,
        clips=clips,
        samples=samples,
        settings=step_settings(config),
        visible=any(stage.visible_loss for stage in stages),
        averaged=any(stage.targets == "online" for stage in stages),
        autocast=run.engine.autocast_dtype,
        copies=weight_copies(config.train.strategy, run.engine.processes.total),
        recomputes=config.train.activation_checkpointing,
        fused_attention=run.engine.device.type != "cpu",
    )


def given_gmm(config: Config, stage: Stage) -> DiagonalGMM | None:
    """The mixture that `gmm.path` names, if it does. Raises UserError if it does not fit the stage it is for."""
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


def space_settings(config: Config, stage: Stage) -> SpaceSettings:
    """What is done to the frames of a stage's source before they are clustered."""
    gmm = config.gmm
    if stage.targets == "mfcc":
        return SpaceSettings(gmm.normalise, gmm.context, gmm.dimensions, gmm.entropy_bits)
    return SpaceSettings(gmm.normalise, 0, gmm.dimensions_phase2, gmm.entropy_bits_phase2)


def check_fits(config: Config, data: Data, schedule: Schedule) -> None:
    """Raises UserError if a mixture of the plan has more components than frames to fit them on."""
    if config.gmm.normalise == "speaker" and data.stream is not None:
        raise UserError(
            "gmm.normalise: speaker does not go with dataset.hf.streaming, whose rows do not say who speaks"
        )
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
    """Keys of the speakers that the manifest of the training set names."""
    clips = data.train.clips
    return sorted({clips.speaker(position) for position in range(len(clips))} - {0})


def hold_steps(config: Config, schedule: Schedule) -> int | None:
    """Updates in a round of phase 2, if it goes in rounds."""
    wanted = config.gmm.hold_steps
    if wanted is None or wanted > 1:
        return None if wanted is None else int(wanted)
    steps = sum(stage.end_step - stage.start_step for stage in schedule.stages if stage.phase == 2)
    return max(1, math.ceil(wanted * steps))


def training_frames(config: Config, data: Data, engine: Engine) -> TrainingFrames:
    train = data.train.clips
    windows, workers = tiling(train, config.dataset), config.dataset.num_workers
    return TrainingFrames(train, windows, config.geometry, config.seed, workers, engine.device, engine.ranks)


def target_maker(config: Config, run: Prepared, files: RunFiles, report: Report) -> TargetMaker:
    """What makes the targets of each stage."""
    settings, engine, frames = config.gmm, run.engine, training_frames(config, run.data, run.engine)

    def keep(gmm: DiagonalGMM, stage: Stage) -> None:
        if engine.ranks.is_main:
            later = files.gmm.with_stem(f"{files.gmm.stem}_phase{stage.phase}")
            gmm.save(files.gmm if stage.start_step == 0 else later)

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
        layer_ranks=LayerRanks(frames),
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


def assemble(
    config: Config, run: Prepared, files: RunFiles, report: Report, *, judges: Sequence[Judge] = ()
) -> Trainer:
    """A trainer at the start of the run's stage: with targets fitted, or blank ones whose state is still to be loaded."""
    engine, data, stage = run.engine, run.data, run.stage
    model = engine.to_device(run.model)
    if config.train.compile:
        compile_layers([*model.encoder.encoder.layers, model.predictor.layer])

    def new_optimizer(module: nn.Module) -> torch.optim.AdamW:
        return build_optimizer(
            module,
            lr=config.optimizer.lr,
            weight_decay=config.optimizer.weight_decay,
            betas=config.optimizer.betas,
            layer_decay=config.optimizer.layer_decay,
            scales_loss=engine.scales_loss,
        )

    frontend = model.encoder.feature_extractor
    if run.fresh and config.init_weights is None and frontend.mel_statistics in ("corpus", "both"):
        measure_bands(training_frames(config, data, engine), frontend)
    maker = target_maker(config, run, files, report)
    windows, writes = training_windows(data.validation, config.dataset), engine.ranks.is_main
    targets = maker.fitted(stage, model, given=run.given) if run.fresh else maker.blank(stage, model.encoder)
    wrapped, optimizer = engine.setup(model, new_optimizer)
    parts = Parts(
        engine=engine,
        network=model,
        model=wrapped,
        optimizer=optimizer,
        build_optimizer=new_optimizer,
        targets=targets,
        maker=maker,
        settings=step_settings(config),
        train=run.loader,
        validation=fixed_loader(config, data.validation, windows, engine),
        checkpoints=Checkpoints(files.checkpoints, keep=config.checkpoint.max_checkpoint, writes=writes),
        fingerprint=data.fingerprint,
        weights=WeightsFolder(files.weights, config.model_dump(mode="json", by_alias=True), writes),
        judges=(PitchMatch(min(len(windows), JUDGED_BATCHES * config.train.batch_size), config.geometry), *judges),
    )
    run_plan = Plan(
        run.schedule,
        run.grad_accum,
        engine.ranks.size,
        config.train.log_every,
        config.checkpoint.ckpt_step,
        config.scheduler.kind,
        config.scheduler.min_ratio,
    )
    alarm = CollapseAlarm(config.health.on_collapse)
    return Trainer(parts, run_plan, Best(config.best.metric), alarm, report, stage=stage)


def plan_run(config: Config, train: EpochLoader, *, per_update: int, progress: RunProgress | None = None) -> Schedule:
    """The stages of the run over this training set, with `per_update` micro-batches in an update; those that were entered
    already stay where they were."""
    return plan(config, -(-train.num_batches // per_update), progress=progress)
