"""What a run will need, before its first step: memory without computing anything, time from a few real micro-batches."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sjepa.config.schedule import Stage
from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.metrics import MetricSums
from sjepa.model import SJEPA, ModelShape
from sjepa.modules.masking import num_masked
from sjepa.targets.base import Targets
from sjepa.training.step import StepSettings, choose_frames, frame_losses, plain_posteriors

_PROBE_SECONDS = 2.0


def training_bytes(
    shape: ModelShape,
    *,
    clips: int,
    samples: int,
    settings: StepSettings,
    visible: bool,
    averaged: bool,
    autocast: torch.dtype | None,
    copies: float = 4.0,
) -> int:
    """Bytes that weights, optimiser and the tensors kept for the backward pass take for a micro-batch of `clips` clips of
    `samples` samples; with `averaged` also a copy of the encoder. Weights and optimiser take `copies` times the weights.
    Counted on a model without data; workspaces and the allocator's rounding come on top."""
    frames = SPEECH.frames(samples)
    masked = clips * num_masked(frames, settings.mask_ratio)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            kept[id(base)] = base
        return tensor

    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        ghost = SJEPA(shape).train()
        ghost(
            torch.empty(clips, samples),
            torch.full((clips,), samples),
            torch.empty(clips, frames, dtype=torch.bool),
            torch.empty(masked, dtype=torch.int64),
            torch.empty(clips * frames - masked if visible else 0, dtype=torch.int64),
        )
    activations = sum(tensor.nelement() * tensor.element_size() for tensor in kept.values())
    return activations + round(copies * _bytes(ghost)) + averaged * _bytes(ghost.encoder)


def weight_copies(strategy: str, processes: int) -> float:
    """How many times the weights one process holds as weights, gradients and two moments."""
    if strategy == "fsdp":
        return 4 / processes
    if strategy == "deepspeed" and processes > 1:
        return 2 + 3 / processes  # weights and gradients; a piece of the moments and of the weights that these move
    return 4.0


def seconds_per_audio_second(
    engine: Engine,
    model: Any,
    optimizer: Any,
    targets: Targets,
    batches: Iterable[Batch],
    *,
    stage: Stage,
    settings: StepSettings,
) -> float | None:
    """Seconds that a second of audio takes this process in training, loading included; None if no batch could be read.

    Runs forward and backward passes for about two seconds after a first one to warm up; nothing is moved.
    """
    sums = MetricSums(stage.num_clusters, engine.device)
    model.train()
    rate: float | None = None
    started, seconds, samples = time.perf_counter(), 0.0, 0
    for batch in batches:
        if batch.num_samples or engine.ranks.size > 1:
            batch = batch.or_silence().to(engine.device)
            frames = choose_frames(batch, mask_key=key(settings.seed, "probe"), settings=settings)
            losses = frame_losses(
                engine, model, plain_posteriors(targets, batch), batch, frames, visible=stage.visible_loss
            )
            engine.backward(losses.masked_kl_N.mean() + losses.visible_kl_N.sum())
            sums.add(
                losses.targets_NK, losses.logits_NK.detach(), losses.masked_kl_N.detach(), losses.visible_kl_N.detach()
            )
            sums.read()  # waits for the device
            seconds, samples = time.perf_counter() - started, samples + batch.total_samples
            if rate is None:  # warm-up: counted only if nothing else comes
                started, rate, seconds, samples = time.perf_counter(), seconds * SPEECH.sample_rate / samples, 0.0, 0
            else:
                rate = seconds * SPEECH.sample_rate / samples
        if engine.ranks.any(seconds > _PROBE_SECONDS):
            break
    optimizer.zero_grad(set_to_none=True)
    return rate


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nelement() * parameter.element_size() for parameter in module.parameters())
