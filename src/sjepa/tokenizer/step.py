"""One update of stage 1: predictions of the target's features at masked frames. B batch, T frames,
D width, N masked frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sjepa.core.frames import FrameGeometry
from sjepa.core.learner import Learner
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.tokenizer.baselines import interpolated, visible_mean
from sjepa.tokenizer.masks import Masks, batch_masks, num_masked
from sjepa.tokenizer.metrics import ErrorSums
from sjepa.tokenizer.network import MaskedAt
from sjepa.tokenizer.targets import TokenTargets, clip_normalised
from sjepa.training.task import Update
from sjepa.training.updates import make_update


@dataclass(frozen=True)
class StepSettings:
    """Settings of an update. `normalise`: targets have zero mean and unit deviation per dimension,
    over an update or over a clip; with none only in the metrics. `longest`: masked span, frames."""

    seed: int
    mask_ratio: float
    masked_at: MaskedAt
    longest: int | None
    normalise: Literal["none", "update", "clip"]
    grad_clip_norm: float
    geometry: FrameGeometry

    def num_masked(self, batch: Batch) -> int:
        """Masked frames of a micro-batch, known on the host."""
        return sum(num_masked(self.geometry.frames(samples), self.mask_ratio) for samples in batch.num_samples)


class Prepared(NamedTuple):
    """A micro-batch on the device with its masks and the target's features of every frame. Without
    clips (`is_real` False) it holds silence, so that all ranks make the same passes."""

    batch: Batch
    masks: Masks
    features_BTD: Tensor
    is_real: bool


def prepare(given: Batch, targets: TokenTargets, settings: StepSettings, engine: Any, mask_key: int) -> Prepared:
    """Masks are keyed by (`mask_key`, clip)."""
    batch = given.or_silence(settings.geometry.fewest_samples)
    frames = [settings.geometry.frames(samples) for samples in batch.num_samples]
    clip_ids, ratio, longest = batch.clip_id_B.tolist(), settings.mask_ratio, settings.longest
    masks = batch_masks(frames, clip_ids, ratio, mask_key, longest=longest).to(engine.device)
    batch = batch.to(engine.device)
    with engine.autocast():
        features = targets.features(batch.clean_BS, batch.lengths())
    return Prepared(batch, masks, features.features_BTD, bool(given.num_samples))


def real_rows(prepared: Sequence[Prepared]) -> list[Tensor]:
    """The target's features of all real frames, [N, D] per micro-batch."""
    return [item.features_BTD.flatten(0, 1)[item.masks.real_N] for item in prepared if item.is_real]


def masked_error(
    item: Prepared,
    model: Any,
    targets: TokenTargets,
    settings: StepSettings,
    sums: ErrorSums,
    *,
    spectral: bool = False,
) -> Tensor:
    """Squared error averaged over dimensions, summed over the masked frames; counted in `sums`.
    With `spectral` plus as much of the error of the spectrum head, averaged over visible frames."""
    batch, masks, at = item.batch, item.masks, settings.masked_at
    found = model(batch.heard_BS, batch.lengths(), masks.mask_BT, masks.masked_N, at, spectral=spectral)
    predicted_ND = found.predicted_ND.float()
    real_BT = torch.zeros_like(masks.mask_BT).flatten().index_fill(0, masks.real_N, True).view_as(masks.mask_BT)
    by_clip = settings.normalise == "clip"
    normal_BTD = clip_normalised(item.features_BTD, real_BT) if by_clip else targets.normalised(item.features_BTD)
    wanted_ND = normal_BTD.flatten(0, 1)[masks.masked_N]
    if settings.normalise != "none":
        error = (predicted_ND - wanted_ND).square().mean(1).sum()
    else:
        raw_ND = item.features_BTD.float().flatten(0, 1)[masks.masked_N]
        error = (predicted_ND - raw_ND).square().mean(1).sum()
        predicted_ND = targets.normalised(predicted_ND.detach())
    if item.is_real:
        visible_BT = real_BT & ~masks.mask_BT
        guesses = (
            guess(normal_BTD, visible_BT).flatten(0, 1)[masks.masked_N] for guess in (interpolated, visible_mean)
        )
        sums.add(wanted_ND, predicted_ND.detach(), *guesses)
    if found.spectrum_error is None:
        return error
    visible = len(masks.real_N) - len(masks.masked_N)
    return error + found.spectrum_error * (len(masks.masked_N) / max(1, visible))


def jepa_update(
    learner: Learner[Any],
    targets: TokenTargets,
    window: Sequence[Batch],
    *,
    number: int,
    settings: StepSettings,
    sums: ErrorSums,
    spectral: bool = False,
    news: bool = False,
) -> Update:
    """Forward and backward over all micro-batches, then one optimiser step. The loss is the mean
    over the masked frames of all ranks; targets are normalised over all frames of the update, so
    that it does not depend on how they are cut into micro-batches. Dropout and masks are seeded by
    the step."""
    engine, ranks = learner.engine, learner.engine.ranks

    def gradients(count: float | Tensor) -> tuple[Tensor, ErrorSums]:
        mask_key, total, own = (
            key(settings.seed, "mask", number),
            torch.zeros((), device=engine.device),
            ErrorSums(engine.device),
        )
        prepared = [
            prepare(batch, targets, settings, engine, mask_key)
            for batch in window
            if batch.num_samples or ranks.size > 1
        ]
        targets.measure(real_rows(prepared), ranks)
        own.add_deviation(targets.deviation_D.square().mean().sqrt())
        for index, item in enumerate(prepared):
            torch.manual_seed(key(settings.seed, "dropout", number, index * ranks.size + ranks.rank))
            with learner.accumulating(more=index + 1 < len(prepared)):
                with engine.autocast():
                    error = masked_error(item, learner.model, targets, settings, own, spectral=spectral)
                loss = error / count * item.is_real
                learner.backward(loss)
            total += loss.detach()
        return total, own

    return make_update(
        learner,
        window,
        terms=float(sum(settings.num_masked(batch) for batch in window)),
        gradients=gradients,
        sums=sums,
        max_norm=settings.grad_clip_norm,
        news=news,
    )
