"""The training task of stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sjepa.core.distributed import Engine
from sjepa.core.learner import Learner
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.tokenizer.collapse import collapse_signs
from sjepa.tokenizer.metrics import FIGURES, ErrorSums
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.step import StepSettings, jepa_update, masked_error, prepare
from sjepa.tokenizer.targets import TokenTargets, ramped_decay
from sjepa.tokenizer.validation import measure
from sjepa.tokenizer.weights import TokenWeights, save_weights
from sjepa.training.checkpoint import Stateful, States
from sjepa.training.clock import Clock
from sjepa.training.schedule import Stage
from sjepa.training.task import Reading, Update, Validation


@dataclass(frozen=True, kw_only=True)
class TokenStage(Stage):
    """`spectrum`: with the auxiliary spectral loss."""

    spectrum: bool = False


@dataclass(frozen=True)
class TaskParts:
    """Dependencies of the task. `decay`: EMA decay of the target at a step; `folder`: where the
    weights are written; `config`: saved with them."""

    engine: Engine
    build_optimizer: Callable[[nn.Module], torch.optim.AdamW]
    settings: StepSettings
    decay: Callable[[int], float]
    folder: Path
    config: dict[str, Any]


class TokenJEPATask:
    """Online network and EMA target."""

    figures = FIGURES

    def __init__(self, parts: TaskParts, network: TokenJEPA, stage: TokenStage) -> None:
        self.parts, self._stage, engine = parts, stage, parts.engine
        self.targets = engine.to_device(TokenTargets(network.encoder))
        self.learner = Learner(engine, network, parts.build_optimizer)
        self.learner.model.train()
        self._epoch_sums, self._recent_sums = ErrorSums(engine.device), ErrorSums(engine.device)

    @property
    def stage(self) -> TokenStage:
        return self._stage

    @property
    def engine(self) -> Engine:
        return self.parts.engine

    @property
    def described(self) -> Mapping[str, Any]:
        return {"shape": self.learner.network.shape.to_dict(), "config": self.parts.config}

    def companions(self, states: States) -> Mapping[str, Mapping[str, Any]]:
        return {}

    @property
    def learners(self) -> Sequence[Learner[TokenJEPA]]:
        return [self.learner]

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {
            "model": self.learner.network,
            "optimizer": self.learner.optimizer,
            "targets": self.targets,
            "epoch_sums": self._epoch_sums,
            "recent_sums": self._recent_sums,
        }

    @property
    def _width(self) -> int:
        return self.learner.network.shape.encoder.width

    def enter(self, stage: Stage, *, pause: Callable[[], None], best_stays: bool) -> None:
        assert isinstance(stage, TokenStage)
        self._stage = stage

    def prepare(self, step: int) -> bool:
        return False

    def update(self, window: Sequence[Batch], *, step: int, rate: float, news: bool) -> Update:
        self.learner.set_rate(rate)
        update = jepa_update(
            self.learner,
            self.targets,
            window,
            number=step,
            settings=self.parts.settings,
            sums=self._recent_sums,
            spectral=self._stage.spectrum,
            news=news,
        )
        if update.made:
            self.targets.encoder.follow(self.learner.network.encoder, self.parts.decay(step))
        return update

    def recent(self) -> Reading:
        metrics = self._recent_sums.read()
        self._epoch_sums.merge(self._recent_sums)
        self._recent_sums.reset()
        return Reading(metrics.named(), tuple(collapse_signs(metrics, self._width)))

    def epoch(self) -> Reading:
        metrics = self._epoch_sums.read()
        return Reading(metrics.named(), tuple(collapse_signs(metrics, self._width)))

    def restart_epoch(self) -> None:
        self._epoch_sums.reset()

    def validate(
        self, batches: Iterable[Batch], *, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> Validation:
        settings, model = self.parts.settings, self.learner.model
        found = measure(self.parts.engine, model, self.targets, batches, settings=settings, warn=warn, pause=pause)
        signs = collapse_signs(found.metrics, self._width, rank=found.rank)
        return Validation({**found.metrics.named(), "target_rank": found.rank}, tuple(signs))

    def keep_weights(self, clock: Clock, validation: Validation, *, is_best: bool) -> None:
        network = self.learner.network.in_one_piece()
        if not self.parts.engine.ranks.is_main:
            return
        progress = {"epoch": clock.epoch, "step": clock.step, "validation": dict(validation.figures)}
        weights = TokenWeights(network, self.targets, self.parts.config, progress)
        for name in ("last.pt", *(["best.pt"] if is_best else [])):
            save_weights(self.parts.folder / name, weights)

    def summary(self, train: Mapping[str, float], validation: Validation) -> str:
        val = validation.figures
        beside = f"neighbours {val['interpolation']:.3f}, mean {val['mean']:.3f}; skill {val['skill']:.3f}"
        targets = f"deviation {val['deviation']:.2f}, rank {val['target_rank']:.1f} of {self._width}"
        return f"train error {train['error']:.3f} | val error {val['error']:.3f} ({beside}), targets: {targets}"

    def rehearse(self, batch: Batch, stage: Stage) -> None:
        settings, engine, sums = self.parts.settings, self.parts.engine, ErrorSums(self.parts.engine.device)
        item = prepare(batch, self.targets, settings, engine, key(settings.seed, "probe"))
        with engine.autocast():
            spectral = isinstance(stage, TokenStage) and stage.spectrum
            error = masked_error(item, self.learner.model, self.targets, settings, sums, spectral=spectral)
        self.learner.backward(error / max(1, len(item.masks.masked_N)))
        sums.read()  # waits for the device


def ema_decay(start: float, end: float, steps: int) -> Callable[[int], float]:
    """The decay of every step of a run of `steps`."""
    return partial(ramped_decay, steps=steps, start=start, end=end)
