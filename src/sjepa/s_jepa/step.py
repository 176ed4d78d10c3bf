"""One optimiser update from a window of micro-batches, and the loss: KL divergence of predictions
from soft targets. [KL Loss]

B batch, T frames, N chosen frames, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.frames import FrameGeometry
from sjepa.core.learner import Learner
from sjepa.core.random import generator, key, uniform_tensor
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.s_jepa.metrics import MetricSums
from sjepa.s_jepa.modules.masking import num_masked, span_mask
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.targets.base import FrameChoice, Targets
from sjepa.training.task import Update
from sjepa.training.updates import make_update

_SMALLEST = 1e-37  # a probability whose logarithm is finite in float32


@dataclass(frozen=True)
class StepSettings:
    """Settings of an update that do not depend on the stage."""

    seed: int
    mask_ratio: float
    mask_length: int
    grad_clip_norm: float
    layer_drop: float
    num_layers: int
    visible_weight: float = 1.0
    geometry: FrameGeometry = field(kw_only=True)


@dataclass(frozen=True)
class Forward:
    """Forward pass of a micro-batch: `model` (the network wrapped by the engine) and its
    settings."""

    engine: Engine
    model: Any
    settings: StepSettings


class Scope(NamedTuple):
    """Options of a forward pass: loss on visible frames too, encoder layers dropped by LayerDrop,
    spectral loss."""

    visible: bool
    dropped: Sequence[int] = ()
    spectral: bool = False


class Step(NamedTuple):
    """Number, stage and settings of an update. `news`: this rank has an event that the others must
    learn of (all-reduced with the metrics)."""

    number: int
    stage: SJEPAStage
    settings: StepSettings
    news: bool = False


class Divergence(NamedTuple):
    """KL per frame and entropy of the targets per frame (nats, float32), and the logarithm of the
    predictions."""

    kl_N: Tensor
    entropy_N: Tensor
    log_predicted_NK: Tensor


class FrameLosses(NamedTuple):
    """Divergence at the masked and KL at the visible frames of a micro-batch, targets of the masked
    frames, and the spectral loss if enabled."""

    masked: Divergence
    visible_kl_N: Tensor
    targets_NK: Tensor
    visible_weight: float
    spectrum_error: Tensor | None = None

    def total(self) -> Tensor:
        """Loss summed over frames, visible ones weighted, plus the spectral loss."""
        total = self.masked.kl_N.sum() + self.visible_weight * self.visible_kl_N.sum()
        return total if self.spectrum_error is None else total + self.spectrum_error

    def count_in(self, sums: MetricSums) -> None:
        """Adds these frames to the metrics."""
        masked, visible_kl_N = Divergence(*(tensor.detach() for tensor in self.masked)), self.visible_kl_N.detach()
        sums.add(
            self.targets_NK,
            masked.log_predicted_NK,
            masked_kl_N=masked.kl_N,
            masked_entropy_N=masked.entropy_N,
            visible_kl_N=visible_kl_N,
            visible_weight=self.visible_weight,
        )


def loss_frames(batch: Batch, settings: StepSettings, *, visible: bool) -> float:
    """Number of frames in the loss of a micro-batch, visible ones weighted; computed on the
    host."""
    frames = [settings.geometry.frames(samples) for samples in batch.num_samples]
    masked = sum(num_masked(count, settings.mask_ratio) for count in frames)
    return masked + visible * settings.visible_weight * (sum(frames) - masked)


class MaskedFrames(NamedTuple):
    """Flat indices b·T + t of a micro-batch's real frames: masked, and visible; and the mask
    itself."""

    mask_BT: Tensor
    masked_N: Tensor
    visible_N: Tensor


def choose_frames(batch: Batch, *, mask_key: int, settings: StepSettings) -> MaskedFrames:
    """Masks a micro-batch on its device, keyed by (`mask_key`, clip)."""
    num_frames = [settings.geometry.frames(samples) for samples in batch.num_samples]
    mask_BT = span_mask(
        num_frames,
        batch.clip_id_B,
        mask_ratio=settings.mask_ratio,
        mask_length=settings.mask_length,
        base_key=mask_key,
    )
    masked = sum(num_masked(count, settings.mask_ratio) for count in num_frames)
    frames_B1 = to_device(num_frames, mask_BT.device)[:, None]
    real_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) < frames_B1
    return MaskedFrames(
        mask_BT, _flat_indices(mask_BT, masked), _flat_indices(real_BT & ~mask_BT, sum(num_frames) - masked)
    )


def divergence(targets_NK: Tensor, logits_NK: Tensor) -> Divergence:
    """KL(q ‖ softmax(logits)) per frame. `targets_NK` holds probabilities."""
    log_predicted_NK = F.log_softmax(logits_NK.float(), dim=-1)
    # torch's xlogy and entr take several times as long on a CPU
    entropy_N = -(targets_NK.clamp(min=_SMALLEST).log() * targets_NK).sum(dim=-1)
    return Divergence(-(targets_NK * log_predicted_NK).sum(dim=-1) - entropy_N, entropy_N, log_predicted_NK)


def frame_losses(
    forward: Forward, batch: Batch, frames: MaskedFrames, posteriors: Callable[[Tensor], Tensor], scope: Scope
) -> FrameLosses:
    """Losses at the masked frames of a micro-batch (and the visible ones, as set in `scope`).
    `posteriors` returns the targets, from clean audio, at flat frame indices."""
    settings, visible_N = forward.settings, frames.visible_N if scope.visible else frames.visible_N[:0]
    with forward.engine.autocast():
        targets_NK = posteriors(torch.cat([frames.masked_N, visible_N]))
        num_samples_B = batch.lengths()
        logits = forward.model(
            batch.heard_BS, num_samples_B, frames.mask_BT, frames.masked_N, visible_N, scope.dropped, scope.spectral
        )
    masked_targets_NK, visible_targets_NK = targets_NK.split([len(frames.masked_N), len(visible_N)])
    error = logits.spectrum_error
    if error is not None:  # averaged over all real frames, whichever are in the loss
        real = sum(map(settings.geometry.frames, batch.num_samples))
        error = error * (loss_frames(batch, settings, visible=scope.visible) / real)
    return FrameLosses(
        divergence(masked_targets_NK, logits.masked_NK),
        divergence(visible_targets_NK, logits.visible_NK).kl_N,
        masked_targets_NK,
        settings.visible_weight,
        error,
    )


def optimiser_update(
    learner: Learner[Any], targets: Targets, window: Sequence[Batch], step: Step, sums: MetricSums
) -> Update:
    """Forward and backward over all micro-batches, then one optimiser step unless loss or gradient
    norm is not finite. Metrics are added to `sums`.

    `window` holds this rank's micro-batches; all ranks have the same number, some without clips.
    The loss is the mean over all frames of all ranks. Dropout, LayerDrop and masks are seeded by
    the step (dropout also by the global index of the micro-batch), so that a step is reproducible
    after a resume. [KL Loss]
    """
    settings = step.settings
    update = make_update(
        learner,
        window,
        terms=sum(loss_frames(batch, settings, visible=step.stage.visible_loss) for batch in window),
        gradients=lambda count: _gradients(learner, targets, window, step, count),
        sums=sums,
        max_norm=settings.grad_clip_norm,
        news=step.news,
    )
    if not update.finite:
        targets.discard()
    return update


def _gradients(
    learner: Learner[Any], targets: Targets, window: Sequence[Batch], step: Step, count: float | Tensor
) -> tuple[Tensor, MetricSums]:
    """Accumulates the gradients of all micro-batches' loss, divided by `count`. Returns that loss
    and the metric sums."""
    engine, ranks, settings, stage = learner.engine, learner.engine.ranks, step.settings, step.stage
    draws = generator(settings.seed, "layer_drop", step.number).random(settings.num_layers)
    dropped = [layer for layer, draw in enumerate(draws) if draw < settings.layer_drop]
    mask_key, draw_key = key(settings.seed, "mask", step.number), key(settings.seed, "reseed", step.number)
    total, sums = torch.zeros((), device=engine.device), MetricSums(stage.num_clusters, engine.device)
    forward, scope = Forward(engine, learner.model, settings), Scope(stage.visible_loss, dropped, stage.spectrum)
    for index, given in enumerate(window):
        if not given.num_samples and ranks.size == 1:
            continue
        torch.manual_seed(key(settings.seed, "dropout", step.number, index * ranks.size + ranks.rank))
        batch, real = given.or_silence(settings.geometry.fewest_samples).to(engine.device), bool(given.num_samples)
        frames = choose_frames(batch, mask_key=mask_key, settings=settings)
        posteriors = observed(targets, batch, frames, draw_key) if real else plain_posteriors(targets, batch)
        with learner.accumulating(more=index + 1 < len(window)):
            losses = frame_losses(forward, batch, frames, posteriors, scope)
            loss = losses.total() / count * real
            learner.backward(loss)
        total += loss.detach()
        if real:
            losses.count_in(sums)
    return total, sums


def plain_posteriors(targets: Targets, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Targets of a micro-batch for `frame_losses`, without collecting statistics."""
    num_samples_B = batch.lengths()
    return lambda frame_N: targets.posteriors(batch.clean_BS, num_samples_B, frame_N, batch.speaker_B)


def observed(targets: Targets, batch: Batch, frames: MaskedFrames, draw_key: int) -> Callable[[Tensor], Tensor]:
    """Targets of a micro-batch for `frame_losses`; collects statistics of all its real frames, in
    the loss or not."""
    num_samples_B = batch.lengths()
    every_N, longest = torch.cat([frames.masked_N, frames.visible_N]), frames.mask_BT.shape[1]
    draw_N = uniform_tensor(draw_key, batch.clip_id_B[every_N // longest], every_N % longest)

    def observe(frame_N: Tensor) -> Tensor:
        choice = FrameChoice(frame_N, every_N[len(frame_N) :], draw_N)
        return targets.observe(batch.clean_BS, num_samples_B, choice, batch.speaker_B)

    return observe


def _flat_indices(chosen_BT: Tensor, count: int) -> Tensor:
    """Flat indices of the True entries; their number `count` is passed to avoid a device
    synchronisation."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=chosen_BT.device)
    return (~chosen_BT).flatten().to(torch.uint8).argsort(stable=True)[:count]
