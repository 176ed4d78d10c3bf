"""One optimiser update from a window of micro-batches. B batch, T frames, N chosen frames, K components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa.config.schedule import Stage
from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.core.random import generator, key, uniform_tensor
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.metrics import MetricSums
from sjepa.modules.masking import num_masked, span_mask
from sjepa.objective import kl_divergence
from sjepa.targets.base import FrameChoice, Targets


@dataclass(frozen=True)
class StepSettings:
    """What an update depends on besides model, data and stage."""

    seed: int
    mask_ratio: float
    mask_length: int
    grad_clip_norm: float
    layer_drop: float
    num_layers: int


class Update(NamedTuple):
    """What one update did. `finite` is False if loss or gradient were not, and then nothing moved."""

    finite: bool
    gradient_norm: float
    samples: int
    clips: tuple[str, ...]


class FrameLosses(NamedTuple):
    """KL per masked and per visible frame of a micro-batch, and what the metrics need of the masked ones."""

    masked_kl_N: Tensor
    visible_kl_N: Tensor
    targets_NK: Tensor
    logits_NK: Tensor


def loss_frames(batch: Batch, mask_ratio: float, *, visible: bool) -> int:
    """Frames of a micro-batch that the loss covers; known without asking the device."""
    frames = [SPEECH.frames(samples) for samples in batch.num_samples]
    return sum(frames) if visible else sum(num_masked(count, mask_ratio) for count in frames)


class MaskedFrames(NamedTuple):
    """Flat indices b·T + t of a micro-batch's real frames: masked, and visible; and the mask itself."""

    mask_BT: Tensor
    masked_N: Tensor
    visible_N: Tensor


def choose_frames(batch: Batch, *, mask_key: int, settings: StepSettings) -> MaskedFrames:
    """Masks a micro-batch on its device, keyed by (`mask_key`, clip)."""
    num_frames = [SPEECH.frames(samples) for samples in batch.num_samples]
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


def frame_losses(
    engine: Engine,
    model: Any,
    posteriors: Callable[[Tensor], Tensor],
    batch: Batch,
    frames: MaskedFrames,
    *,
    visible: bool,
    dropped: Sequence[int] = (),
) -> FrameLosses:
    """Predicts the masked frames of a micro-batch (and, with `visible`, the others) and compares them with their targets:
    `posteriors` gives those of flat frame indices, from the clean audio."""
    visible_N = frames.visible_N if visible else frames.visible_N[:0]
    with engine.autocast():
        targets_NK = posteriors(torch.cat([frames.masked_N, visible_N]))
        num_samples_B = to_device(batch.num_samples, batch.heard_BS.device)
        logits = model(batch.heard_BS, num_samples_B, frames.mask_BT, frames.masked_N, visible_N, dropped)
    masked_targets_NK, visible_targets_NK = targets_NK.split([len(frames.masked_N), len(visible_N)])
    return FrameLosses(
        kl_divergence(masked_targets_NK, logits.masked_NK),
        kl_divergence(visible_targets_NK, logits.visible_NK),
        masked_targets_NK,
        logits.masked_NK,
    )


def optimiser_update(
    engine: Engine,
    model: Any,
    optimizer: Any,
    targets: Targets,
    window: Sequence[Batch],
    *,
    step: int,
    stage: Stage,
    settings: StepSettings,
    sums: MetricSums,
) -> Update:
    """Forward and backward over all micro-batches, then one update of the weights unless something is not finite.

    The loss is one mean over all frames of the window, whatever micro-batch they are in. Dropout, LayerDrop and masks are
    keyed by the step, so that a step gives the same result whenever it is made. [KL Loss]
    """
    if not window:
        return Update(True, 0.0, 0, ())
    count = sum(loss_frames(batch, settings.mask_ratio, visible=stage.visible_loss) for batch in window)
    draws = generator(settings.seed, "layer_drop", step).random(settings.num_layers)
    dropped = [layer for layer, draw in enumerate(draws) if draw < settings.layer_drop]
    mask_key = key(settings.seed, "mask", step)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=engine.device)
    update_sums = MetricSums(stage.num_clusters, engine.device)  # counted only if the update is made
    draw_key = key(settings.seed, "reseed", step)
    for index, batch in enumerate(window):
        torch.manual_seed(key(settings.seed, "dropout", step, index))
        batch = batch.to(engine.device)
        frames = choose_frames(batch, mask_key=mask_key, settings=settings)
        posteriors = _observed(targets, batch, frames, draw_key)
        losses = frame_losses(engine, model, posteriors, batch, frames, visible=stage.visible_loss, dropped=dropped)
        loss = (losses.masked_kl_N.sum() + losses.visible_kl_N.sum()) / count
        engine.backward(loss)
        total += loss.detach()
        update_sums.add(
            losses.targets_NK, losses.logits_NK.detach(), losses.masked_kl_N.detach(), losses.visible_kl_N.detach()
        )
    norm = engine.clip_gradients(model, optimizer, settings.grad_clip_norm)
    norm_value, total_value = torch.stack([norm.float(), total.float()]).tolist()  # the one wait for the device
    finite = norm_value - norm_value == 0 and total_value - total_value == 0
    if finite or engine.scales_loss:
        optimizer.step()
    if finite:
        sums.merge(update_sums)
    else:
        targets.discard()
    clips = tuple(name for batch in window for name in batch.names)
    return Update(finite, norm_value, sum(batch.total_samples for batch in window), clips)


def plain_posteriors(targets: Targets, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Targets of a micro-batch that leave no trace, for `frame_losses`."""
    num_samples_B = to_device(batch.num_samples, batch.clean_BS.device)
    return lambda frame_N: targets.posteriors(batch.clean_BS, num_samples_B, frame_N)


def _observed(targets: Targets, batch: Batch, frames: MaskedFrames, draw_key: int) -> Callable[[Tensor], Tensor]:
    """Targets of a micro-batch, all of whose real frames are remembered, whether the loss is over them or not."""
    num_samples_B = to_device(batch.num_samples, batch.clean_BS.device)
    every_N, longest = torch.cat([frames.masked_N, frames.visible_N]), frames.mask_BT.shape[1]
    draw_N = uniform_tensor(draw_key, batch.clip_id_B[every_N // longest], every_N % longest)

    def observe(frame_N: Tensor) -> Tensor:
        return targets.observe(batch.clean_BS, num_samples_B, FrameChoice(frame_N, every_N[len(frame_N) :], draw_N))

    return observe


def _flat_indices(chosen_BT: Tensor, count: int) -> Tensor:
    """The flat indices of the True entries, of which there are `count`: told, so that the device need not be asked."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=chosen_BT.device)
    return (~chosen_BT).flatten().to(torch.uint8).argsort(stable=True)[:count]
