"""Validation of stage 1 on fixed crops and masks of held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import SharedError
from sjepa.core.random import key
from sjepa.dataset.batch import Batch, Failure
from sjepa.features.effective_rank import EFFECTIVE_RANK_FRAMES, effective_rank
from sjepa.tokenizer.metrics import ErrorSums, Metrics
from sjepa.tokenizer.step import StepSettings, masked_error, prepare, real_rows
from sjepa.tokenizer.targets import TokenTargets


class Measured(NamedTuple):
    """Metrics, and the effective rank of the targets over (at most) 2,000 real frames."""

    metrics: Metrics
    rank: float


@torch.no_grad()
def measure(
    engine: Engine,
    model: Any,
    targets: TokenTargets,
    batches: Iterable[Batch],
    *,
    settings: StepSettings,
    warn: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> Measured:
    """Figures over all batches and ranks in evaluation mode; masks are seeded by the clip only,
    targets normalised as in the last update. All ranks have the same number of batches, some
    without clips. Raises SharedError if no clip can be read."""
    ranks, was_training = engine.ranks, model.training
    model.eval()
    sums, mask_key = ErrorSums(engine.device), key(settings.seed, "validation mask")
    sums.add_deviation(targets.deviation_D.square().mean().sqrt())
    found: list[Tensor] = []
    failures: list[Failure] = []
    missing = EFFECTIVE_RANK_FRAMES
    for batch in batches:
        pause()
        failures += batch.failures
        if not batch.num_samples and ranks.size == 1:
            continue
        item = prepare(batch, targets, settings, engine, mask_key)
        with engine.autocast():
            masked_error(item, model, targets, settings, sums)
        if missing > 0:
            rows = torch.cat([item.features_BTD.new_zeros(0, item.features_BTD.shape[2]), *real_rows([item])])
            found.append(ranks.rows(rows[:missing].float(), most=missing))
            missing -= len(found[-1])
    model.train(was_training)
    ranks.add_up(*sums.tensors)
    for failure in [failure for own in ranks.each(failures) for failure in own]:
        warn(f"skipped {failure.name}: {failure.reason}")
    if missing == EFFECTIVE_RANK_FRAMES:
        raise SharedError("dataset.test_path: not one of the clips to measure on could be read")
    return Measured(sums.read(), ranks.from_main(effective_rank(torch.cat(found))))
