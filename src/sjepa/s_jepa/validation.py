"""Validation metrics on fixed crops and masks of held-out clips. N frames, L layers, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sjepa.core.errors import SharedError
from sjepa.core.random import key
from sjepa.core.ranks import Ranks
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.features.effective_rank import EFFECTIVE_RANK_FRAMES, effective_rank, spread
from sjepa.s_jepa.metrics import Metrics, MetricSums
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.step import Forward, Scope, choose_frames, frame_losses, plain_posteriors
from sjepa.s_jepa.targets.base import Targets

JUDGED_BATCHES = 60  # over all ranks


class Measured(NamedTuple):
    """Metrics; effective rank and spread of every layer's features over (at most) 2,000 real
    frames; and the figures of the judges."""

    metrics: Metrics
    effective_ranks: tuple[float, ...]
    spreads: tuple[float, ...]
    judged: Mapping[str, float]


class Judge(Protocol):
    """An extra validation metric computed from features, with or without labels."""

    def other_form(self, batch: Batch) -> Tensor | None:
        """Transformed waveforms [B, S] of the same lengths, to be encoded too, or always None.
        Called on all ranks, also for empty batches, since a sharded encoder is collective."""
        ...

    def observe(self, batch: Batch, features_ND: Tensor, unit_N: Tensor, other_ND: Tensor | None) -> None:
        """Adds last-layer features [N, D] and the most likely component [N] of all real frames of a
        batch, clip by clip; `other_ND`: features of the transformed waveforms."""
        ...

    def figures(self, num_components: int, width: int, ranks: Ranks) -> dict[str, float]:
        """Figures since the last call. Collective: all ranks must call it."""
        ...


@dataclass(frozen=True)
class Validator:
    """Computes validation metrics: `forward.model` against `targets`; figures of each layer and of
    `judges` from `encoder` (part of that model) on unmasked input."""

    forward: Forward
    encoder: Encoder
    targets: Targets
    judges: Sequence[Judge] = ()

    @torch.no_grad()
    def measure(
        self,
        batches: Iterable[Batch],
        *,
        visible: bool,
        warn: Callable[[str], None],
        pause: Callable[[], None] = lambda: None,
    ) -> Measured:
        """Figures over all batches and ranks in evaluation mode, on clean audio; masks are seeded
        by the clip only. With `visible` the loss covers visible frames too. All ranks have the same
        number of batches, some without clips. `pause` is called before every batch and may raise.

        The judges get the first batches, unmasked. Unreadable clips are reported through `warn`.
        Raises SharedError if no clip can be read.
        """
        engine, model, settings = self.forward.engine, self.forward.model, self.forward.settings
        was_training, ranks = model.training, engine.ranks
        model.eval()
        sums = MetricSums(self.targets.gmm.num_components, engine.device)
        mask_key = key(settings.seed, "validation mask")
        layers: list[Tensor] = []
        failures: list[Failure] = []
        missing = EFFECTIVE_RANK_FRAMES
        for number, batch in enumerate(batches):
            pause()
            failures += batch.failures
            real = bool(batch.num_samples)
            if not real and ranks.size == 1:
                continue
            batch = batch.or_silence(settings.geometry.fewest_samples).to(engine.device)
            frames = choose_frames(batch, mask_key=mask_key, settings=settings)
            losses = frame_losses(self.forward, batch, frames, plain_posteriors(self.targets, batch), Scope(visible))
            if real:
                losses.count_in(sums)
            if missing > 0:
                layers.append(ranks.rows(self._layers(batch, missing if real else 0), most=missing))
                missing -= len(layers[-1])
            if self.judges and number * ranks.size < JUDGED_BATCHES:
                self._show(batch, real=real)
        model.train(was_training)
        ranks.add_up(*sums.tensors)
        for failure in [failure for found in ranks.each(failures) for failure in found]:
            warn(f"skipped {failure.name}: {failure.reason}")
        if missing == EFFECTIVE_RANK_FRAMES:
            raise SharedError("dataset.test_path: not one of the clips to measure on could be read")
        features = torch.cat(layers).unbind(1)
        figures = tuple(map(effective_rank, features)), tuple(map(spread, features))
        figures = ranks.from_main(figures)  # avoids rounding differences between ranks
        judged: dict[str, float] = {}
        for judge in self.judges:
            judged |= judge.figures(self.targets.gmm.num_components, self.encoder.shape.width, ranks)
        return Measured(sums.read(), *figures, judged)

    def _show(self, batch: Batch, *, real: bool) -> None:
        """Passes a batch to every judge. A placeholder (not `real`) is encoded, since that is
        collective, but not passed on."""
        features_ND, unit_N = self._units(batch)
        for judge in self.judges:
            other_BS = judge.other_form(batch)
            other_ND = None if other_BS is None else self._heard(batch.num_samples, other_BS)
            if real:
                judge.observe(batch, features_ND, unit_N, other_ND)

    def _units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last-layer features and most likely component of all real frames, clip by clip,
        unmasked."""
        num_samples_B = to_device(batch.num_samples, self.forward.engine.device)
        with self.forward.engine.autocast():
            output = self.encoder(batch.clean_BS, num_samples_B)
            every_N = output.real_BT.flatten().nonzero()[:, 0]
            nothing_BT = torch.zeros_like(output.real_BT)
            logits = self.forward.model(batch.clean_BS, num_samples_B, nothing_BT, every_N[:0], every_N)
        return output.features_BTD.flatten(0, 1)[every_N], logits.visible_NK.argmax(1)

    def _heard(self, num_samples: Sequence[int], waveform_BS: Tensor) -> Tensor:
        """Last-layer features of all real frames, clip by clip, [N, D]."""
        with self.forward.engine.autocast():
            output = self.encoder(waveform_BS, to_device(num_samples, self.forward.engine.device))
        return output.features_BTD[output.real_BT]

    def _layers(self, batch: Batch, most: int) -> Tensor:
        """Features of all layers at the first (at most `most`) real frames of a batch, [N, L,
        D]."""
        with self.forward.engine.autocast():
            output = self.encoder(batch.clean_BS, to_device(batch.num_samples, self.forward.engine.device))
        return torch.stack([features_BTD[output.real_BT][:most].float() for features_BTD in output.layers], dim=1)
