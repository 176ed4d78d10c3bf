"""Memory use of training: estimated beforehand, or measured on the largest micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sjepa.core.errors import UserError
from sjepa.dataset.batch import Batch
from sjepa.training.schedule import Stage
from sjepa.training.task import Task


def saved_bytes(build: Callable[[], nn.Module], call: Callable[[Any], Any], *, autocast: torch.dtype | None) -> int:
    """Bytes of activations that autograd saves when `call` runs the network from `build`;
    parameters are not counted. Uses fake tensors: no data needed, nothing allocated."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, nn.Parameter):
            kept[id(base)] = base
        return tensor

    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        call(build())
    return sum(tensor.nelement() * tensor.element_size() for tensor in kept.values())


def weight_copies(strategy: str, processes: int) -> float:
    """Memory of one process for weights, gradients and two moments, in multiples of the weights."""
    if strategy == "fsdp":
        return 4 / processes
    if strategy == "deepspeed" and processes > 1:
        return 2 + 3 / processes  # full weights and gradients; shards of moments and master weights
    return 4.0


def probe_memory(task: Task, shapes: Iterable[tuple[int, int]], stages: Iterable[Stage], *, sample_rate: int) -> int:
    """Peak bytes of forward and backward passes over noise, in batches of (clips, samples)
    `shapes` and in each of `stages`, with memory reserved for the moments; weights do not
    change. Raises UserError if out of memory."""
    engine = task.learners[0].engine
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    for learner in task.learners:
        learner.model.train()
    reserved = [moment for learner in task.learners for moment in _moments(learner.model, learner.optimizer)]
    clips = samples = 0
    try:
        for stage in stages:
            for clips, samples in shapes:
                task.rehearse(_noise(clips, samples), stage)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"train.probe_memory: a micro-batch of {clips} clips of {samples / sample_rate:.1f} s does not fit into the "
            f"memory of {engine.device}; lower train.max_batch_seconds (or train.batch_size) and raise train.grad_accum"
        ) from None
    finally:
        reserved.clear()
        for learner in task.learners:
            learner.zero_grad()
    if engine.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(engine.device)
        torch.cuda.empty_cache()
        return peak
    return peak_bytes()


def _moments(model: Any, optimizer: Any) -> list[Tensor]:
    """Placeholders for the AdamW moments, if the optimiser has not allocated them yet."""
    if not hasattr(optimizer, "state") or optimizer.state:
        return []
    return [torch.ones_like(parameter) for parameter in model.parameters() for _ in range(2)]


def _noise(clips: int, samples: int) -> Batch:
    waveform = torch.rand(clips, samples)
    names = tuple(f"noise {number}" for number in range(clips))
    return Batch(waveform, waveform.clone(), (samples,) * clips, torch.arange(clips), tuple(range(clips)), names)


def peak_bytes() -> int:
    """Peak memory of this process in bytes; 0 where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
