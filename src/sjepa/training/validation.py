"""Figures on held-out clips, the same crops and masks every time. N frames, L layers, D width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import SharedError
from sjepa.core.random import key
from sjepa.core.ranks import Ranks
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.features.effective_rank import RANK_FRAMES, effective_rank, spread
from sjepa.metrics import Metrics, MetricSums
from sjepa.modules.encoder import Encoder
from sjepa.targets.base import Targets
from sjepa.training.step import StepSettings, choose_frames, frame_losses, plain_posteriors

JUDGED_BATCHES = 60  # of all processes


class Validation(NamedTuple):
    """The metrics; and over 2,000 real frames (or all, if fewer) the effective rank and the spread of every layer's
    features; and what a judge found."""

    metrics: Metrics
    effective_ranks: tuple[float, ...]
    spreads: tuple[float, ...]
    judged: Mapping[str, float]

    def figure(self, name: str) -> float:
        """One of the metrics or of what judges found; NaN if there is none of that name."""
        return float(getattr(self.metrics, name, self.judged.get(name, math.nan)))


class Judge(Protocol):
    """Somebody who looks at the features of validation clips from outside training, with labels or without."""

    def other_form(self, batch: Batch) -> Tensor | None:
        """Waveforms [B, S] of the same lengths that the encoder is to hear as well; None from a judge that never asks for
        any. All processes are asked, also those whose batch is empty: the encoder may lie in pieces."""
        ...

    def observe(self, batch: Batch, features_ND: Tensor, unit_N: Tensor, other_ND: Tensor | None) -> None:
        """Takes the last layer [N, D] and the likeliest component [N] of every real frame of a batch, clip by clip, and the
        last layer of the other form."""
        ...

    def figures(self, num_components: int, width: int, ranks: Ranks) -> dict[str, float]:
        """The figures of what was observed since the last time; all processes call it."""
        ...


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
    judges: Sequence[Judge] = (),
) -> Validation:
    """Figures over all batches in evaluation mode, on clean audio; masks are keyed by the clip alone. With `visible` the
    loss is over the frames that were not masked too. Several processes give as many batches each, some without clips, and
    get the figures over all of them. `pause` is called before every batch and may raise.

    `judges` see the first batches, nothing masked. `encoder` is `model`'s own, called without masks for the figures per
    layer. Clips that cannot be read are named through `warn`. Raises UserError if none can.
    """
    was_training, ranks = model.training, engine.ranks
    model.eval()
    sums = MetricSums(targets.gmm.num_components, engine.device)
    mask_key = key(settings.seed, "validation mask")
    layers: list[Tensor] = []
    failures: list[Failure] = []
    missing = RANK_FRAMES
    for number, batch in enumerate(batches):
        pause()
        failures += batch.failures
        real = bool(batch.num_samples)
        if not real and ranks.size == 1:
            continue
        batch = batch.or_silence(settings.geometry.samples(2)).to(engine.device)
        frames = choose_frames(batch, mask_key=mask_key, settings=settings)
        losses = frame_losses(
            engine, model, plain_posteriors(targets, batch), batch, frames, visible=visible, settings=settings
        )
        if real:
            losses.count_in(sums)
        if missing > 0:
            layers.append(ranks.rows(_layers(engine, encoder, batch, missing if real else 0), most=missing))
            missing -= len(layers[-1])
        if judges and number * ranks.size < JUDGED_BATCHES:
            _show(judges, engine, model, encoder, batch, real=real)
    model.train(was_training)
    ranks.add_up(*sums.tensors)
    for failure in [failure for found in ranks.each(failures) for failure in found]:
        warn(f"skipped {failure.name}: {failure.reason}")
    if missing == RANK_FRAMES:
        raise SharedError("dataset.test_path: not one of the clips to measure on could be read")
    features = torch.cat(layers).unbind(1)
    figures = tuple(map(effective_rank, features)), tuple(map(spread, features))
    figures = ranks.from_main(figures)  # the last bits may differ between machines
    judged: dict[str, float] = {}
    for judge in judges:
        judged |= judge.figures(targets.gmm.num_components, encoder.shape.width, ranks)
    return Validation(sums.read(), *figures, judged)


def _show(judges: Sequence[Judge], engine: Engine, model: Any, encoder: Encoder, batch: Batch, *, real: bool) -> None:
    """Shows a batch to every judge; what stands for one that is not `real` is computed and shown to nobody."""
    features_ND, unit_N = _units(engine, model, encoder, batch)
    for judge in judges:
        other_BS = judge.other_form(batch)
        other_ND = None if other_BS is None else _heard(engine, encoder, batch.num_samples, other_BS)
        if real:
            judge.observe(batch, features_ND, unit_N, other_ND)


def _units(engine: Engine, model: Any, encoder: Encoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last layer and the likeliest component of every real frame of a batch, clip by clip, nothing masked."""
    num_samples_B = to_device(batch.num_samples, engine.device)
    with engine.autocast():
        output = encoder(batch.clean_BS, num_samples_B)
        every_N = output.real_BT.flatten().nonzero()[:, 0]
        logits = model(batch.clean_BS, num_samples_B, torch.zeros_like(output.real_BT), every_N[:0], every_N)
    return output.features_BTD.flatten(0, 1)[every_N], logits.visible_NK.argmax(1)


def _heard(engine: Engine, encoder: Encoder, num_samples: Sequence[int], waveform_BS: Tensor) -> Tensor:
    """The last layer at every real frame, clip by clip, [N, D]."""
    with engine.autocast():
        output = encoder(waveform_BS, to_device(num_samples, engine.device))
    return output.features_BTD[output.real_BT]


def _layers(engine: Engine, encoder: Encoder, batch: Batch, most: int) -> Tensor:
    """Every layer's features at the first real frames of a batch, at most `most`, [N, L, D]."""
    with engine.autocast():
        output = encoder(batch.clean_BS, to_device(batch.num_samples, engine.device))
    return torch.stack([features_BTD[output.real_BT][:most].float() for features_BTD in output.layers], dim=1)
