"""Figures on held-out clips, the same crops and masks every time. N frames, L layers, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import SharedError
from sjepa.core.random import key
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.features.effective_rank import RANK_FRAMES, effective_rank, spread
from sjepa.metrics import Metrics, MetricSums
from sjepa.modules.encoder import Encoder
from sjepa.targets.base import Targets
from sjepa.training.step import StepSettings, choose_frames, frame_losses, plain_posteriors


class Validation(NamedTuple):
    """The metrics; and over 2,000 real frames (or all, if fewer) the effective rank and the spread of every layer's
    features."""

    metrics: Metrics
    effective_ranks: tuple[float, ...]
    spreads: tuple[float, ...]


@torch.no_grad()
def validate(
    engine: Engine,
    model: Any,
    encoder: Encoder,
    targets: Targets,
    batches: Iterable[Batch],
    *,
    visible: bool,
    settings: StepSettings,
    warn: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> Validation:
    """Figures over all batches in evaluation mode, on clean audio; masks are keyed by the clip alone. With `visible` the
    loss is over the frames that were not masked too. Several processes give as many batches each, some without clips, and
    get the figures over all of them. `pause` is called before every batch and may raise.

    `encoder` is `model`'s own, called without masks for the figures per layer. Clips that cannot be read are named through
    `warn`. Raises UserError if none can.
    """
    was_training, ranks = model.training, engine.ranks
    model.eval()
    sums = MetricSums(targets.gmm.num_components, engine.device)
    mask_key = key(settings.seed, "validation mask")
    layers: list[Tensor] = []
    failures: list[Failure] = []
    missing = RANK_FRAMES
    for batch in batches:
        pause()
        failures += batch.failures
        real = bool(batch.num_samples)
        if not real and ranks.size == 1:
            continue
        batch = batch.or_silence().to(engine.device)
        frames = choose_frames(batch, mask_key=mask_key, settings=settings)
        losses = frame_losses(
            engine, model, plain_posteriors(targets, batch), batch, frames, visible=visible, settings=settings
        )
        if real:
            losses.count_in(sums)
        if missing > 0:
            layers.append(ranks.rows(_layers(engine, encoder, batch, missing if real else 0), most=missing))
            missing -= len(layers[-1])
    model.train(was_training)
    ranks.add_up(*sums.tensors)
    for failure in [failure for found in ranks.each(failures) for failure in found]:
        warn(f"skipped {failure.name}: {failure.reason}")
    if missing == RANK_FRAMES:
        raise SharedError("dataset.test_path: not one of the clips to measure on could be read")
    features = torch.cat(layers).unbind(1)
    figures = tuple(map(effective_rank, features)), tuple(map(spread, features))
    return Validation(sums.read(), *ranks.from_main(figures))  # the last bits may differ between machines


def _layers(engine: Engine, encoder: Encoder, batch: Batch, most: int) -> Tensor:
    """Every layer's features at the first real frames of a batch, at most `most`, [N, L, D]."""
    with engine.autocast():
        output = encoder(batch.clean_BS, to_device(batch.num_samples, engine.device))
    return torch.stack([features_BTD[output.real_BT][:most].float() for features_BTD in output.layers], dim=1)
