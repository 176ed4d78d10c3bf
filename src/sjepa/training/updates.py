"""The part of an optimiser update that all systems share: one mean over all micro-batches of all
ranks, gradient clipping, and no step where loss or gradient are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sjepa.core.learner import Learner
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.training.task import Update


class Sums(Protocol):
    """Metrics as raw sums on the device."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The sums, to be all-reduced."""
        ...

    def merge(self, other: Any) -> None:
        """Adds the sums of `other`."""
        ...


S = TypeVar("S", bound=Sums)


def make_update(
    learner: Learner[Any],
    window: Sequence[Batch],
    *,
    terms: float,
    gradients: Callable[[float | Tensor], tuple[Tensor, S]],
    sums: S,
    max_norm: float,
    news: bool,
) -> Update:
    """One optimiser step on this rank's micro-batches, of which all ranks have the same number,
    some without clips.

    `terms`: number of terms of this rank in the loss, which is a mean over those of all ranks.
    `gradients` is given their number, accumulates the gradients of the loss and returns the loss
    and the metrics of this rank, which are added to `sums` unless loss or gradient norm are not
    finite; the step is then not made.
    """
    engine, ranks = learner.engine, learner.engine.ranks
    if ranks.size == 1 and not terms:
        return Update(True, 0.0, 0, (), news)
    count: float | Tensor = terms
    if ranks.size > 1:
        count = torch.tensor(terms).to(engine.device, non_blocking=True)
        ranks.add_up(count)
        if engine.scales_loss and not float(count):  # the loss scaler needs an update
            return Update(True, 0.0, 0, (), ranks.any(news))
        count = count.clamp(min=1)
    learner.zero_grad()
    total, update_sums = gradients(count)
    norm = learner.clip_gradients(max_norm)
    samples = to_device([sum(batch.total_samples for batch in window), news], engine.device)
    like = update_sums.tensors[0]
    figures = torch.cat([samples.to(like), total.to(like)[None]])
    ranks.add_up(figures, *update_sums.tensors)
    figures = torch.cat([figures, norm.to(figures)[None]])
    all_samples, all_news, total_value, norm_value = figures.tolist()  # the only device sync
    finite = norm_value - norm_value == 0 and total_value - total_value == 0
    if all_samples and (finite or engine.scales_loss):
        learner.step()
    if finite:
        sums.merge(update_sums)
    clips = tuple(name for batch in window for name in batch.names)
    return Update(finite, norm_value, int(all_samples), clips, bool(all_news))
