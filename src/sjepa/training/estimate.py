"""What a run will need, before its first step: memory without computing anything, time from a few real micro-batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sjepa.config.schedule import Stage
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.metrics import MetricSums
from sjepa.model import SJEPA, ModelShape
from sjepa.modules.masking import num_masked
from sjepa.objective import kl_divergence
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
    recomputes: bool = False,
    fused_attention: bool = False,
) -> int:
    """Bytes that weights, optimiser and the tensors kept for the backward pass take for a micro-batch of `clips` clips of
    `samples` samples; with `averaged` also a copy of the encoder. Weights and optimiser take `copies` times the weights;
    with `recomputes` the insides of transformer layers are not kept, with `fused_attention` (GPUs) its weights are not.
    Counted on a model without data; workspaces and the allocator's rounding come on top."""
    frames = shape.encoder.geometry.frames(samples)
    masked = clips * num_masked(frames, settings.mask_ratio)
    if fused_attention:  # which the ghost, on a CPU, has without dropout alone
        transformer, predictor = (
            replace(own, attention_dropout=0.0) for own in (shape.encoder.transformer, shape.predictor)
        )
        shape = replace(shape, encoder=replace(shape.encoder, transformer=transformer), predictor=predictor)
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
        ghost.encoder.recompute_activations(recomputes)
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
            batch = batch.or_silence(settings.geometry.samples(2)).to(engine.device)
            frames = choose_frames(batch, mask_key=key(settings.seed, "probe"), settings=settings)
            losses = frame_losses(
                engine,
                model,
                plain_posteriors(targets, batch),
                batch,
                frames,
                visible=stage.visible_loss,
                settings=settings,
            )
            engine.backward(losses.masked_kl_N.mean() + losses.visible_kl_N.sum())
            losses.count_in(sums)
            sums.read()  # waits for the device
            seconds, samples = time.perf_counter() - started, samples + batch.total_samples
            if rate is None:  # warm-up: counted only if nothing else comes
                started, rate, seconds, samples = (
                    time.perf_counter(),
                    seconds * settings.geometry.sample_rate / samples,
                    0.0,
                    0,
                )
            else:
                rate = seconds * settings.geometry.sample_rate / samples
        if engine.ranks.any(seconds > _PROBE_SECONDS):
            break
    optimizer.zero_grad(set_to_none=True)
    return rate


def probe_memory(
    engine: Engine,
    model: Any,
    optimizer: Any,
    targets: Iterable[Targets],
    shapes: Iterable[tuple[int, int]],
    *,
    visible: bool,
    settings: StepSettings,
) -> int:
    """Forward and backward over noise in batches of (clips, samples) `shapes`, with the targets of every phase and room for
    the moments; nothing is moved. The most bytes in use. Raises UserError if they do not fit."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    model.train()
    reserved = [] if not hasattr(optimizer, "state") or optimizer.state else _moments(model)
    clips = samples = 0
    try:
        for own in targets:
            for clips, samples in shapes:
                batch = _noise(clips, samples).to(engine.device)
                frames = choose_frames(batch, mask_key=key(settings.seed, "probe"), settings=settings)
                every = torch.cat([frames.masked_N, frames.visible_N if visible else frames.visible_N[:0]])
                with engine.autocast():
                    targets_NK = plain_posteriors(own, batch)(every)
                    masked, shown = every.split([len(frames.masked_N), len(every) - len(frames.masked_N)])
                    length_B = torch.full((clips,), samples, device=engine.device)
                    logits = model(batch.heard_BS, length_B, frames.mask_BT, masked, shown, ())
                    logits_N1 = torch.cat([logits.masked_NK, logits.visible_NK]).mean(dim=1, keepdim=True)
                # the head of another phase has other components: as many numbers, whatever they are
                engine.backward(kl_divergence(targets_NK, logits_N1 + torch.zeros_like(targets_NK)).mean())
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        seconds = samples / settings.geometry.sample_rate
        raise UserError(
            f"train.probe_memory: a micro-batch of {clips} clips of {seconds:.1f} s does not fit into the memory of "
            f"{engine.device}; lower train.max_batch_seconds (or train.batch_size) and raise train.grad_accum"
        ) from None
    finally:
        reserved.clear()
        optimizer.zero_grad(set_to_none=True)
    if engine.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(engine.device)
        torch.cuda.empty_cache()
        return peak
    return peak_bytes()


def _moments(model: Any) -> list[Tensor]:
    """Room for what AdamW allocates at its first step."""
    return [torch.ones_like(parameter) for parameter in model.parameters() for _ in range(2)]


def _noise(clips: int, samples: int) -> Batch:
    waveform = torch.rand(clips, samples)
    names = tuple(f"noise {number}" for number in range(clips))
    return Batch(waveform, waveform.clone(), (samples,) * clips, torch.arange(clips), tuple(range(clips)), names)


def peak_bytes() -> int:
    """The most memory that this process ever had, where the system tells; else 0."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nelement() * parameter.element_size() for parameter in module.parameters())
