"""Estimate of training time from a few real micro-batches."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sjepa.dataset.batch import Batch
from sjepa.training.task import Task

_PROBE_SECONDS = 2.0


def seconds_per_audio_second(task: Task, batches: Iterable[Batch], *, sample_rate: int) -> float | None:
    """Seconds of training per second of audio on this rank, data loading included; None if no batch
    could be read.

    Runs forward and backward passes for about two seconds after one warm-up batch; weights do not
    change.
    """
    ranks = task.learners[0].engine.ranks
    for learner in task.learners:
        learner.model.train()
    rate: float | None = None
    started, seconds, samples = time.perf_counter(), 0.0, 0
    for batch in batches:
        if batch.num_samples or ranks.size > 1:
            task.rehearse(batch, task.stage)
            seconds, samples = time.perf_counter() - started, samples + batch.total_samples
            if samples:
                is_first, rate = rate is None, seconds * sample_rate / samples
                if is_first:  # warm-up: counted only if no batch follows
                    started, seconds, samples = time.perf_counter(), 0.0, 0
        if ranks.any(seconds > _PROBE_SECONDS):
            break
    for learner in task.learners:
        learner.zero_grad()
    return rate
