"""Stage 1 of the tokenizer as a system for the train command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchinfo import summary as torchinfo_summary

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.frames import FrameGeometry
from sjepa.core.progress import Messages
from sjepa.core.random import key
from sjepa.tokenizer.ds_config import DeepSpeedCurve, check_batch
from sjepa.tokenizer.memory import training_bytes
from sjepa.tokenizer.metrics import FIGURES, SKILL
from sjepa.tokenizer.modules.conformer import ConformerShape
from sjepa.tokenizer.modules.encoder import TokenEncoderShape
from sjepa.tokenizer.network import TokenJEPA, TokenJEPAShape
from sjepa.tokenizer.schema import SCHEMA
from sjepa.tokenizer.settings import TokConfig
from sjepa.tokenizer.shards import SHARDS, ShardFolder, shard_folder
from sjepa.tokenizer.sizes import hyperparameters
from sjepa.tokenizer.step import StepSettings
from sjepa.tokenizer.task import TaskParts, TokenJEPATask, TokenStage, ema_decay
from sjepa.tokenizer.validation import measure
from sjepa.tokenizer.weights import load_weights
from sjepa.training.feeding import Data, evaluation_loader
from sjepa.training.figures import Figure
from sjepa.training.optimizer import build_adamw
from sjepa.training.report import Report, Section
from sjepa.training.schedule import RateCurve, RunProgress, Schedule
from sjepa.training.system import Prepared

WITH_SPECTRUM, AFTER_SPECTRUM = "masked prediction with spectrum", "masked prediction"


class TokenizerEncoderSystem:
    """Joint-embedding prediction: the features of masked frames as an EMA copy of the encoder gives
    them on the whole clip."""

    name, schema, figures = "tokenizer encoder", SCHEMA, FIGURES
    state = ("model", "optimizer", "targets", "epoch_sums", "recent_sums")
    step_log = "encoder_logs.txt"

    def owns(self, config: TokConfig) -> bool:
        return config.train.stage == "train_jepa"

    def plan(
        self, config: TokConfig, steps_per_epoch: int, *, progress: RunProgress | None = None
    ) -> Schedule[TokenStage]:
        total = total_updates(config, steps_per_epoch, progress)
        warmed = round(config.train.spectral_warmup * total)
        if progress is not None and AFTER_SPECTRUM in progress.entered:
            warmed = progress.entered[AFTER_SPECTRUM]
        elif progress is not None and warmed:
            warmed = max(warmed, progress.step)
        stages = [
            TokenStage(
                name=name,
                phase=1,
                start_step=start,
                end_step=end,
                phase_start_step=0,
                augment=config.dataset.augment.enabled,
                rate=rate_curve(config, total),
                spectrum=name == WITH_SPECTRUM,
            )
            for name, start, end in ((WITH_SPECTRUM, 0, min(warmed, total)), (AFTER_SPECTRUM, warmed, total))
            if start < end
        ]
        return Schedule(tuple(stages), steps_per_epoch)

    def check(self, config: TokConfig, data: Data, schedule: Schedule[TokenStage]) -> None:
        """Any data fits."""

    def start(self, run: Prepared, *, note: Callable[[str], None]) -> TokenJEPA:
        check_launch(run)
        torch.manual_seed(key(run.config.seed, "model"))
        return TokenJEPA(network_shape(run.config))

    def describe(self, start: TokenJEPA) -> str:
        """Table of modules with parameter counts; totals of encoder and predictor."""
        table = str(torchinfo_summary(start, depth=2, col_names=("num_params", "params_percent"), verbose=0))
        encoder, predictor = (
            sum(weight.numel() for weight in part.parameters()) for part in (start.encoder, start.predictor)
        )
        geometry = start.encoder.geometry
        rate = geometry.sample_rate / geometry.hop_samples
        return f"{table}\nencoder {encoder:,} parameters, predictor {predictor:,}; {rate:g} frames per second"

    def memory_bytes(self, run: Prepared, start: TokenJEPA) -> int:
        return max(training_bytes(start, clips, samples) for clips, samples in run.loader.largest_batches())

    def task(self, run: Prepared, start: TokenJEPA, folder: Path, report: Report) -> TokenJEPATask:
        config, engine = run.config, run.engine
        parts = TaskParts(
            engine=engine,
            build_optimizer=optimizer_builder(config, engine),
            settings=step_settings(config),
            decay=ema_decay(config.target.ema_start, config.target.ema_end, run.schedule.total_steps),
            folder=folder / "weights",
            config=config.model_dump(mode="json", by_alias=True),
        )
        assert isinstance(run.stage, TokenStage)
        return TokenJEPATask(parts, engine.to_device(start), run.stage)

    def copies(self, config: TokConfig, folder: Path) -> ShardFolder | None:
        return shard_folder(config, folder / SHARDS)

    def best(self, config: TokConfig) -> Figure:
        return SKILL

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """A run whose error never got below the baselines."""
        if not rows:
            return []
        last = rows[-1]
        error, guess = float(last["val_error"]), min(float(last["val_interpolation"]), float(last["val_mean"]))
        if error < guess:
            return []
        return [f"the masked error ({error:.3f}) is not below that of the better baseline ({guess:.3f})"]

    def results(self, run: Prepared, weights: Path, messages: Messages) -> dict[str, float]:
        loaded, engine = load_weights(weights), run.engine
        loader = evaluation_loader(run.config, run.data.test.clips, engine)
        batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="test set")
        network, targets = engine.to_device(loaded.network), engine.to_device(loaded.targets)
        found = measure(engine, network, targets, batches, settings=step_settings(run.config), warn=messages.warn)
        return {**found.metrics.named(), "target_rank": found.rank, "frames": float(found.metrics.frames)}

    def sections(self, run: Prepared, weights: Path, messages: Messages) -> list[Section]:
        """None."""
        return []


def total_updates(config: TokConfig, steps_per_epoch: int, progress: RunProgress | None) -> int:
    """Of a run. Raises UserError if it has already made more."""
    total = config.train.max_steps or config.train.epochs * steps_per_epoch
    if progress is not None and total < progress.step:
        raise UserError(f"the run ends after {total} updates, but it is already at update {progress.step}")
    return total


def optimizer_builder(config: TokConfig, engine: Engine) -> Callable[[nn.Module], torch.optim.AdamW]:
    own = config.optimizer
    return partial(
        build_adamw,
        lr=own.lr,
        weight_decay=own.weight_decay,
        betas=own.betas,
        eps=own.eps,
        scales_loss=engine.scales_loss,
    )


def check_launch(run: Prepared) -> None:
    """The batch of `train.ds_config` against that of the run. Raises UserError."""
    train = run.config.train
    if train.ds_config is not None:
        processes = run.engine.processes.total
        check_batch(train.ds_config, clips=train.batch_size, accumulated=run.grad_accum, processes=processes)


def rate_curve(config: TokConfig, total: int) -> RateCurve:
    """The learning rate over a run of `total` updates."""
    peak, curve = config.optimizer.lr, config.scheduler
    if curve.deepspeed is not None:
        name, params = curve.deepspeed["type"], tuple(curve.deepspeed["params"].items())
        return DeepSpeedCurve(start_step=0, end_step=total, peak=peak, warmup_steps=0, name=name, params=params)
    warmup = curve.warmup_steps
    return RateCurve(
        start_step=0,
        end_step=total,
        peak=peak,
        warmup_steps=round(warmup * total) if warmup < 1 else int(warmup),
        kind=curve.kind,
        min_ratio=curve.min_ratio,
    )


def network_shape(config: TokConfig) -> TokenJEPAShape:
    values = hyperparameters(config.model.size, config.model.overrides)
    inner = ConformerShape(values.inner_width, values.heads, values.conformer_kernel, values.dropout)
    encoder = TokenEncoderShape(
        config.dataset.sample_rate,
        values.channels,
        values.strides,
        values.residual_blocks,
        inner,
        values.conformer_layers,
        values.code_dim,
        gaussians=values.gaussians,
        clip_seconds=config.dataset.max_seconds,
    )
    predictor = ConformerShape(values.predictor_width, values.heads, values.conformer_kernel, values.dropout)
    spectral = config.train.spectral_warmup > 0
    context = context_offsets(config.train.spectral_context, config.geometry) if spectral else ()
    return TokenJEPAShape(encoder, predictor, spectral, context)


def context_offsets(seconds: float, geometry: FrameGeometry) -> tuple[int, ...]:
    """Frames at a quarter, half and the whole of `seconds` on both sides, and the frame itself;
    empty for 0 seconds."""
    frames = seconds * geometry.sample_rate / geometry.hop_samples
    sides = {sign * round(share * frames) for share in (0.25, 0.5, 1.0) for sign in (-1, 1)}
    return tuple(sorted({0, *sides})) if seconds else ()


def step_settings(config: TokConfig) -> StepSettings:
    return StepSettings(
        config.seed,
        config.mask.ratio,
        config.mask.at,
        config.mask.longest,
        config.target.normalise,
        config.train.grad_clip_norm,
        config.geometry,
    )


TOKENIZER_ENCODER = TokenizerEncoderSystem()
