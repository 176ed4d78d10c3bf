"""Figures on held-out clips, the same crops and masks every time. T frames, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.random import key
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
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
) -> Validation:
    """Figures over all batches in evaluation mode, on clean audio; masks are keyed by the clip alone. With `visible` the
    loss is over the frames that were not masked too.

    `encoder` is `model`'s own, called without masks for the figures per layer. Clips that cannot be read are named through
    `warn`. Raises UserError if none can.
    """
    was_training = model.training
    model.eval()
    sums = MetricSums(targets.gmm.num_components, engine.device)
    mask_key = key(settings.seed, "validation mask")
    layers: list[list[torch.Tensor]] = [[] for _ in range(encoder.num_layers)]
    missing = RANK_FRAMES
    for batch in batches:
        for failure in batch.failures:
            warn(f"skipped {failure.name}: {failure.reason}")
        if not batch.num_samples:
            continue
        batch = batch.to(engine.device)
        frames = choose_frames(batch, mask_key=mask_key, settings=settings)
        losses = frame_losses(engine, model, plain_posteriors(targets, batch), batch, frames, visible=visible)
        sums.add(losses.targets_NK, losses.logits_NK, losses.masked_kl_N, losses.visible_kl_N)
        if missing > 0:
            missing -= _keep_layers(engine, encoder, batch, layers, missing)
    model.train(was_training)
    if not layers[0]:
        raise UserError("dataset.test_path: not one of the clips to measure on could be read")
    features = [torch.cat(kept) for kept in layers]
    return Validation(sums.read(), tuple(map(effective_rank, features)), tuple(map(spread, features)))


def _keep_layers(engine: Engine, encoder: Encoder, batch: Batch, layers: list[list[torch.Tensor]], most: int) -> int:
    """Adds every layer's features at up to `most` real frames of a batch to `layers`; how many there were."""
    with engine.autocast():
        output = encoder(batch.clean_BS, to_device(batch.num_samples, engine.device))
    for kept, features_BTD in zip(layers, output.layers, strict=True):
        kept.append(features_BTD[output.real_BT][:most].float())
    return len(layers[0][-1])
