"""The training task of stage 2. B batch, S samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sjepa.core.distributed import Engine
from sjepa.core.errors import SharedError
from sjepa.core.learner import Learner
from sjepa.dataset.batch import Batch, Failure
from sjepa.tokenizer.codec.metrics import FIGURES, LossSums
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.samples import Samples
from sjepa.tokenizer.codec.step import (
    Losses,
    frozen,
    judge_terms,
    judges_term,
    make,
    reconstruction,
    update_decoder,
    update_judges,
)
from sjepa.tokenizer.codec.weights import CodecWeights, codec_shapes, save_codec
from sjepa.tokenizer.modules.discriminators import Discriminators
from sjepa.training.checkpoint import Stateful, States
from sjepa.training.clock import Clock
from sjepa.training.schedule import Stage
from sjepa.training.task import Reading, Update, Validation

_JUDGES_RATE = 0.5  # learning rate of the discriminators, as a share of the decoder's


@dataclass(frozen=True, kw_only=True)
class CodecStage(Stage):
    """`adversarial`: with discriminators."""

    adversarial: bool = False


@dataclass(frozen=True)
class CodecParts:
    """Dependencies of the task. `folder`: where the weights are written; `config`: saved with
    them; `samples`: reconstructs a clip now and then."""

    engine: Engine
    build_optimizer: Callable[[nn.Module], torch.optim.AdamW]
    losses: Losses
    max_norm: float
    folder: Path
    config: dict[str, Any]
    samples: Samples


class CodecTask:
    """Decoder and discriminators; the encoder is frozen and in no optimiser, unless it is trained
    too."""

    figures = FIGURES

    def __init__(self, parts: CodecParts, codec: Codec, judges: Discriminators, stage: CodecStage) -> None:
        self.parts, self._stage, engine = parts, stage, parts.engine
        self.codec, self.losses = engine.to_device(codec), engine.to_device(parts.losses)
        self.learner = Learner(engine, codec.learned, parts.build_optimizer)
        self.judges = Learner(engine, judges, parts.build_optimizer)
        for learner in self.learners:
            learner.model.train()
        self._epoch_sums, self._recent_sums = LossSums(engine.device), LossSums(engine.device)

    @property
    def stage(self) -> CodecStage:
        return self._stage

    @property
    def engine(self) -> Engine:
        return self.parts.engine

    @property
    def described(self) -> Mapping[str, Any]:
        return {**codec_shapes(self.codec), "config": self.parts.config}

    def companions(self, states: States) -> Mapping[str, Mapping[str, Any]]:
        names = ("discriminators", "discriminators_optimizer")
        return {"discriminators.pt": {name: states[name] for name in names}}

    @property
    def learners(self) -> Sequence[Learner[Any]]:
        return [self.learner, self.judges]

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {
            "encoder": self.codec.encoder,
            "whitening": self.codec.whitening,
            "model": self.learner.network,
            "optimizer": self.learner.optimizer,
            "discriminators": self.judges.network,
            "discriminators_optimizer": self.judges.optimizer,
            "epoch_sums": self._epoch_sums,
            "recent_sums": self._recent_sums,
        }

    def enter(self, stage: Stage, *, pause: Callable[[], None], best_stays: bool) -> None:
        assert isinstance(stage, CodecStage)
        self._stage = stage

    def prepare(self, step: int) -> bool:
        return False

    def update(self, window: Sequence[Batch], *, step: int, rate: float, news: bool) -> Update:
        """Also reconstructs a clip where it is due."""
        update = self._update(window, rate, news)
        self.parts.samples.write(step + 1, self.codec)
        return update

    def _update(self, window: Sequence[Batch], rate: float, news: bool) -> Update:
        self.learner.set_rate(rate)
        self.judges.set_rate(_JUDGES_RATE * rate)
        with frozen(self.judges.network) as judges:
            update, made = update_decoder(
                self.codec,
                self.learner,
                judges if self._stage.adversarial else None,
                window,
                self.losses,
                self._recent_sums,
                max_norm=self.parts.max_norm,
                news=news,
            )
        if not self._stage.adversarial or not made:
            return update
        other = update_judges(self.judges, made, self._recent_sums, max_norm=self.parts.max_norm)
        return update._replace(finite=update.finite and other.finite)

    def recent(self) -> Reading:
        figures = self._recent_sums.read()
        self._epoch_sums.merge(self._recent_sums)
        self._recent_sums.reset()
        return Reading(figures)

    def epoch(self) -> Reading:
        return Reading(self._epoch_sums.read())

    def restart_epoch(self) -> None:
        self._epoch_sums.reset()

    def validate(
        self, batches: Iterable[Batch], *, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> Validation:
        judges = self.judges.model if self._stage.adversarial else None
        return Validation(
            measure(
                self.parts.engine, self.codec, self.learner.model, judges, batches, self.losses, warn=warn, pause=pause
            )
        )

    def keep_weights(self, clock: Clock, validation: Validation, *, is_best: bool) -> None:
        if not self.parts.engine.ranks.is_main:
            return
        progress = {"epoch": clock.epoch, "step": clock.step, "validation": dict(validation.figures)}
        for name in ("last.pt", *(["best.pt"] if is_best else [])):
            save_codec(self.parts.folder / name, CodecWeights(self.codec, self.parts.config, progress))

    def summary(self, train: Mapping[str, float], validation: Validation) -> str:
        val = validation.figures
        text = f"train mel {train['mel']:.3f} | val mel {val['mel']:.3f}, spectral {val['spectral']:.3f}"
        return text if not self._stage.adversarial else f"{text}, adversarial {val['adversarial']:.3f}"

    def rehearse(self, batch: Batch, stage: Stage) -> None:
        adversarial, sums = isinstance(stage, CodecStage) and stage.adversarial, LossSums(self.parts.engine.device)
        made = make(batch, self.codec, self.learner.model, self.parts.engine)
        loss = self.losses.total(reconstruction(made, self.losses))
        if adversarial:
            with frozen(self.judges.network) as judges:
                loss = loss + self.losses.weights.gan * sum(judge_terms(judges, self.parts.engine, made).values())
        self.learner.backward(loss)
        if adversarial:
            made = made._replace(audio_BS=made.audio_BS.detach())
            self.judges.backward(judges_term(self.judges.model, self.parts.engine, made))
        sums.read()  # waits for the device


@torch.no_grad()
def measure(
    engine: Engine,
    codec: Codec,
    model: Any,
    judges: Any,
    batches: Iterable[Batch],
    losses: Losses,
    *,
    warn: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Losses over all batches and ranks in evaluation mode; adversarial ones with `judges`. All
    ranks have the same number of batches, some without clips. Raises SharedError if no clip can be
    read."""
    ranks, was_training, sums = engine.ranks, model.training, LossSums(engine.device)
    model.eval()
    failures: list[Failure] = []
    samples = 0
    for batch in batches:
        pause()
        failures += batch.failures
        if not batch.num_samples and ranks.size == 1:
            continue
        made = make(batch, codec, model, engine)
        terms = reconstruction(made, losses)
        if judges is not None:
            terms |= judge_terms(judges, engine, made) | {"judges": judges_term(judges, engine, made)}
        if made.is_real:
            sums.add(terms, made.samples)
            samples += made.samples
    model.train(was_training)
    ranks.add_up(*sums.tensors)
    for rank_failures in ranks.each([(failure.name, failure.reason) for failure in failures]):
        for name, reason in rank_failures:
            warn(f"skipped {name}: {reason}")
    if not any(ranks.each(samples)):
        raise SharedError("dataset.test_path: no clip could be read")
    return sums.read()
