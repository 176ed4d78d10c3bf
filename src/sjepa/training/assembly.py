"""From a configuration to the components of a run; the only reader of the whole configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sjepa.config.schedule import Schedule, Stage, plan
from sjepa.config.schema import Config
from sjepa.config.sizes import Hyperparameters, hyperparameters
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.core.progress import Progress
from sjepa.core.random import key
from sjepa.dataset.augment import Augmentation
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import BatchPlan, Loader, WindowDataset
from sjepa.dataset.windows import Windows
from sjepa.features.mfcc import MFCC, NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.fit import fit_gmm
from sjepa.gmm.reservoir import draw_frames
from sjepa.metrics import Metrics
from sjepa.model import SJEPA, ModelShape
from sjepa.modules.encoder import EncoderShape
from sjepa.modules.transformer import TransformerShape
from sjepa.targets.mfcc import FEATURES, MFCCTargets, gather_features
from sjepa.training.best import Best
from sjepa.training.checkpoint import Checkpoints
from sjepa.training.clock import Clock
from sjepa.training.data import ClipSet, Fingerprint, load_clips, tiling, training_windows, validation_part
from sjepa.training.estimate import training_bytes
from sjepa.training.optimizer import build_optimizer
from sjepa.training.report import Report
from sjepa.training.step import StepSettings
from sjepa.training.trainer import Parts, Plan, Trainer
from sjepa.weights import Weights, load_weights, save_weights, tensor_shapes, transfer

_FIT_BATCH_CLIPS = 16


@dataclass(frozen=True)
class Data:
    """The clips of a run and the windows of an epoch over them."""

    train: ClipSet
    test: ClipSet
    validation: Clips
    noise: ClipSet | None
    windows: Windows


def load_data(config: Config, *, cache_folder: Path, progress: Progress) -> Data:
    """Scans what the configuration names. Raises UserError if a set has no usable clip."""
    settings, seed = config.dataset, config.seed

    def load(paths: Any, name: str, most: int | None = None) -> ClipSet:
        return load_clips(
            paths, settings, name=name, most=most, seed=seed, cache_folder=cache_folder, progress=progress
        )

    train = load(settings.train_path, "dataset.train_path", settings.max_train_samples)
    test = load(settings.test_path, "dataset.test_path", settings.max_test_samples)
    noise_path = settings.augment.noise_path if settings.augment.enabled else None
    return Data(
        train,
        test,
        validation_part(test.clips, settings.val_prob, seed),
        None if noise_path is None else load(noise_path, "dataset.augment.noise_path"),
        training_windows(train.clips, settings),
    )


def train_loader(config: Config, data: Data, *, pin_memory: bool) -> Loader:
    settings = config.dataset
    augment = settings.augment
    augmentation = None
    if augment.enabled:
        noise = None if data.noise is None else data.noise.clips
        augmentation = Augmentation(augment.p_noise, augment.p_mix, augment.snr_noise, augment.ratio_mix, noise)
    dataset = WindowDataset(data.train.clips, data.windows, seed=config.seed, augmentation=augmentation)
    budget = config.train.max_batch_seconds
    batch_plan = BatchPlan(config.train.batch_size, None if budget is None else round(budget * settings.sample_rate))
    return Loader(dataset, batch_plan, num_workers=settings.num_workers, pin_memory=pin_memory)


def fixed_loader(
    config: Config, clips: Clips, windows: Windows, *, seed: int, batch_size: int, pin_memory: bool
) -> Loader:
    """Windows in their own order, never augmented."""
    return Loader(
        WindowDataset(clips, windows, seed=seed),
        BatchPlan(batch_size, shuffle=False),
        num_workers=config.dataset.num_workers,
        pin_memory=pin_memory,
    )


def model_shape(config: Config, num_clusters: int) -> ModelShape:
    """The network that `model` describes, with predictor positions for `dataset.max_seconds`."""
    values: Hyperparameters = hyperparameters(config.model.size, config.model.overrides)
    transformer = TransformerShape(
        values.width,
        values.num_heads,
        values.ffn_width,
        values.dropout,
        values.attention_dropout,
        values.activation_dropout,
    )
    encoder = EncoderShape(
        values.conv_channels,
        values.num_layers,
        transformer,
        values.position_kernel,
        values.position_groups,
        values.frontend_gradient_scale,
    )
    rate = values.predictor_dropout
    predictor = TransformerShape(values.width, values.predictor_heads, values.predictor_ffn_width, rate, rate, rate)
    max_frames = SPEECH.frames(round(config.dataset.max_seconds * config.dataset.sample_rate))
    return ModelShape(encoder, predictor, num_clusters, max_frames)


def step_settings(config: Config) -> StepSettings:
    values = hyperparameters(config.model.size, config.model.overrides)
    return StepSettings(
        config.seed,
        config.masking.mask_ratio,
        config.masking.mask_length,
        config.train.grad_clip_norm,
        values.layer_drop,
        values.num_layers,
    )


def build_model(config: Config, stage: Stage, *, note: Callable[[str], None]) -> SJEPA:
    """The network of a stage: drawn by seed, or started from `init_weights` where shapes agree."""
    torch.manual_seed(key(config.seed, "model"))
    model = SJEPA(model_shape(config, stage.num_clusters))
    if config.init_weights is not None:
        if Path(config.init_weights).is_dir():
            raise UserError("init_weights: starting from a Hugging Face folder is not available yet")
        source = load_weights(config.init_weights).model
        if tensor_shapes(source.encoder) != tensor_shapes(model.encoder):
            raise UserError(
                f"init_weights: {config.init_weights} holds an encoder of another shape than model.size "
                f"{config.model.size} describes ({source.shape.encoder} against {model.shape.encoder})"
            )
        own = transfer(source, model)
        rebuilt = f"; new: {', '.join(sorted({name.split('.')[0] for name in own}))} (other sizes)" if own else ""
        note(f"weights from {config.init_weights}{rebuilt}")
    return model


def estimated_bytes(config: Config, engine: Engine, train: Loader, stage: Stage, model: SJEPA) -> int:
    """Memory of training on the largest micro-batch of an epoch."""
    lengths = train.dataset.windows.length_N
    batches = train.plan.batches(train.dataset, 0)
    clips, samples = max(
        ((len(batch), int(lengths[batch].max())) for batch in batches), key=lambda size: size[0] * size[1]
    )
    return training_bytes(
        model,
        clips=clips,
        samples=samples,
        settings=step_settings(config),
        visible=stage.visible_loss,
        autocast=engine.autocast_dtype,
    )


def evaluation_loader(config: Config, clips: Clips) -> Loader:
    """Every sample of every clip, longer clips in tiles."""
    windows = tiling(clips, config.dataset)
    return fixed_loader(config, clips, windows, seed=config.seed, batch_size=config.train.batch_size, pin_memory=False)


def evaluation_stage(trained: Config) -> Stage:
    """The last stage of the run that a weights file comes from: it says which frames the loss is over."""
    return plan(trained, 1).stages[-1]


def blank_phase1_gmm(config: Config) -> DiagonalGMM:
    """A mixture of phase 1's size, to be given its parameters."""
    return DiagonalGMM(config.gmm.num_clusters, NUM_FEATURES, features=FEATURES)


def given_phase1_gmm(config: Config) -> DiagonalGMM | None:
    """The mixture that `gmm.path` names, if it does. Raises UserError if it does not fit the configuration."""
    if config.gmm.path is None:
        return None
    gmm, components = DiagonalGMM.load(Path(config.gmm.path)), config.gmm.num_clusters
    if (gmm.num_components, gmm.num_features, gmm.features) != (components, NUM_FEATURES, FEATURES):
        raise UserError(
            f"gmm.path: {config.gmm.path} has {gmm.num_components} components over {gmm.num_features} features "
            f"({gmm.features or 'unnamed'}), not {components} (gmm.num_clusters) over {NUM_FEATURES} ({FEATURES})"
        )
    return gmm


def fitted_phase1_gmm(config: Config, data: Data, *, seed: int, device: torch.device, report: Report) -> DiagonalGMM:
    """The mixture of phase 1, fitted on frames drawn uniformly from the training set."""
    components = config.gmm.num_clusters
    windows = tiling(data.train.clips, config.dataset)
    ids = data.train.clips.id_N[windows.clip_N] * (1 << 20) + windows.start_N // max(1, int(windows.length_N.max()))
    sample = draw_frames(SPEECH.frames(windows.length_N), ids, config.gmm.fit_frames, seed=seed)
    loader = fixed_loader(
        config,
        data.train.clips,
        windows.subset(sample.window_M),
        seed=seed,
        batch_size=_FIT_BATCH_CLIPS,
        pin_memory=False,
    )
    batches = report.progress(loader.epoch(0), total=loader.num_batches, label="GMM: reading frames")
    features_ND = gather_features(batches, sample, MFCC().to(device), device)
    if len(features_ND) < components:
        raise UserError(
            f"gmm.num_clusters: {components} components cannot be fitted on the {len(features_ND)} frames "
            "of the training set"
        )
    fit = fit_gmm(
        features_ND.cpu() if device.type == "mps" else features_ND,  # sums in float64, which mps does not have
        components,
        seed=key(seed, "gmm"),
        kmeans_iters=config.gmm.kmeans_iters,
        em_iters=config.gmm.em_iters,
        features=FEATURES,
        log=lambda iteration, value: report.detail(
            f"GMM: EM {iteration:2d}, log-likelihood {value:.4f} nats per frame"
        ),
    )
    report.note(
        f"GMM: {components} components on {len(features_ND):,} frames of {len(sample.window_M):,} windows, "
        f"log-likelihood {fit.log_likelihoods[0]:.3f} → {fit.log_likelihoods[-1]:.3f}"
    )
    return fit.gmm.to(device)


def assemble(
    config: Config,
    data: Data,
    *,
    engine: Engine,
    schedule: Schedule,
    train: Loader,
    model: SJEPA,
    gmm: DiagonalGMM,
    weights_folder: Path,
    checkpoint_folder: Path,
    report: Report,
) -> Trainer:
    """A trainer at the start of its run."""
    pin = engine.device.type == "cuda"
    model = engine.to_device(model)
    optimizer = build_optimizer(
        model,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        scales_loss=engine.scales_loss,
    )
    wrapped, wrapped_optimizer = engine.setup(model, optimizer)
    targets = engine.to_device(MFCCTargets(gmm))
    windows = training_windows(data.validation, config.dataset)
    plain_config = config.model_dump(mode="json", by_alias=True)

    def keep_weights(clock: Clock, stage: Stage, metrics: Metrics, is_best: bool) -> None:
        progress = {"epoch": clock.epoch, "step": clock.step, "phase": stage.phase, "stage": stage.name}
        progress["validation"] = {name: getattr(metrics, name) for name in Metrics.NAMES}
        weights = Weights(model, targets.gmm, plain_config, progress)
        save_weights(weights_folder / "last.pt", weights)
        if is_best:
            save_weights(weights_folder / "best.pt", weights)

    parts = Parts(
        engine=engine,
        network=model,
        model=wrapped,
        optimizer=wrapped_optimizer,
        targets=targets,
        settings=step_settings(config),
        train=train,
        validation=fixed_loader(
            config, data.validation, windows, seed=config.seed, batch_size=config.train.batch_size, pin_memory=pin
        ),
        checkpoints=Checkpoints(checkpoint_folder, keep=config.checkpoint.max_checkpoint),
        fingerprint=Fingerprint(data.train.clips, data.windows),
        save_weights=keep_weights,
    )
    run_plan = Plan(
        schedule,
        config.train.grad_accum,
        config.train.log_every,
        config.checkpoint.ckpt_step,
        config.scheduler.kind,
        config.scheduler.min_ratio,
    )
    return Trainer(parts, run_plan, Best(config.best.metric), report)


def plan_run(config: Config, train: Loader) -> Schedule:
    """The stages of the run over this training set."""
    return plan(config, -(-train.num_batches // config.train.grad_accum))
