"""One update of stage 2: the decoder, then the discriminators. B batch, S samples, T frames, D
dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sjepa.core.distributed import Engine
from sjepa.core.learner import Learner
from sjepa.dataset.batch import Batch
from sjepa.tokenizer.codec.losses import (
    MelDistance,
    SpectralLoss,
    adversarial_loss,
    feature_loss,
    judges_loss,
    waveform_error,
)
from sjepa.tokenizer.codec.metrics import LossSums
from sjepa.tokenizer.codec.network import Codec
from sjepa.training.task import Update
from sjepa.training.updates import make_update


@dataclass(frozen=True)
class LossWeights:
    """Of the terms of the decoder's loss; `gan` of adversarial loss and feature matching."""

    waveform: float
    spectral: float
    mel: float
    gan: float


class Losses(nn.Module):
    """The reconstruction losses of audio at a rate."""

    def __init__(self, sample_rate: int, weights: LossWeights) -> None:
        super().__init__()
        self.weights = weights
        self.spectral, self.mel = SpectralLoss(), MelDistance(sample_rate)

    def forward(self, found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> dict[str, Tensor]:
        """By name; without a gradient where the weight is 0."""
        terms: dict[str, Callable[..., Tensor]] = {
            "mel": self.mel, "spectral": self.spectral, "waveform": waveform_error
        }  # fmt: skip
        return {
            name: term(found_BS if getattr(self.weights, name) else found_BS.detach(), wanted_BS, length_B)
            for name, term in terms.items()
        }

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.weights, name) * loss for name, loss in losses.items()]).sum()


class Made(NamedTuple):
    """A micro-batch on the device and the decoder's audio of it, [B, S] both, zero after the end of
    each clip. Without clips (`is_real` False) it holds silence, so that all ranks make the same
    passes."""

    batch: Batch
    audio_BS: Tensor
    is_real: bool

    @property
    def samples(self) -> int:
        return self.batch.total_samples if self.is_real else 0


def make(given: Batch, codec: Codec, model: Any, engine: Engine) -> Made:
    """The audio that `model`, what is learned of the codec or its wrapped form, makes of a
    batch."""
    batch = given.or_silence(codec.encoder.geometry.hop_samples).to(engine.device)
    with engine.autocast():
        audio_BS = codec.reconstructed(model, batch.clean_BS, batch.lengths())
    return Made(batch, audio_BS[:, : batch.clean_BS.shape[1]].float(), bool(given.num_samples))


def judge_terms(judges: Any, engine: Engine, made: Made) -> dict[str, Tensor]:
    """The adversarial losses of the decoder, by name."""
    length_B = made.batch.lengths()
    with engine.autocast():
        with torch.no_grad():
            real = judges(made.batch.clean_BS, length_B)
        other = judges(made.audio_BS, length_B)
    return {"adversarial": adversarial_loss(other), "features": feature_loss(real, other)}


def judges_term(judges: Any, engine: Engine, made: Made) -> Tensor:
    """The loss of the discriminators, which hear both in one pass."""
    length_B = made.batch.lengths()
    with engine.autocast():
        both_BS = torch.cat([made.batch.clean_BS, made.audio_BS])
        found = judges(both_BS, None if length_B is None else length_B.repeat(2))
    real, other = zip(*(one.halves() for one in found), strict=True)
    return judges_loss(real, other)


def reconstruction(made: Made, losses: Losses) -> dict[str, Tensor]:
    return losses(made.audio_BS, made.batch.clean_BS, made.batch.lengths())


def update_decoder(
    codec: Codec,
    learner: Learner[Any],
    judges: nn.Module | None,
    window: Sequence[Batch],
    losses: Losses,
    sums: LossSums,
    *,
    max_norm: float,
    news: bool,
) -> tuple[Update, list[Made]]:
    """With `judges` also the adversarial losses. The loss is the mean over micro-batches, weighted
    by their samples, of all ranks. Also returns the audio, without its gradient."""
    engine, kept = learner.engine, []

    def gradients(count: float | Tensor) -> tuple[Tensor, LossSums]:
        total, own = torch.zeros((), device=engine.device), LossSums(engine.device)
        given = [batch for batch in window if batch.num_samples or engine.ranks.size > 1]
        for index, batch in enumerate(given):
            with learner.accumulating(more=index + 1 < len(given)):
                made = make(batch, codec, learner.model, engine)
                terms = reconstruction(made, losses)
                loss = losses.total(terms)
                if judges is not None:
                    terms |= judge_terms(judges, engine, made)
                    loss = loss + losses.weights.gan * (terms["adversarial"] + terms["features"])
                loss = loss * (made.samples / count)
                learner.backward(loss)
            own.add(terms, made.samples)
            total += loss.detach()
            kept.append(made._replace(audio_BS=made.audio_BS.detach()))
        return total, own

    terms = float(sum(batch.total_samples for batch in window))
    return make_update(learner, window, terms=terms, gradients=gradients, sums=sums, max_norm=max_norm, news=news), kept


def update_judges(learner: Learner[Any], made: Sequence[Made], sums: LossSums, *, max_norm: float) -> Update:
    """The discriminators, on audio that the decoder made before its update."""
    engine = learner.engine

    def gradients(count: float | Tensor) -> tuple[Tensor, LossSums]:
        total, own = torch.zeros((), device=engine.device), LossSums(engine.device)
        for index, item in enumerate(made):
            with learner.accumulating(more=index + 1 < len(made)):
                term = judges_term(learner.model, engine, item)
                loss = term * (item.samples / count)
                learner.backward(loss)
            own.add({"judges": term}, item.samples)
            total += loss.detach()
        return total, own

    window, terms = [item.batch for item in made if item.is_real], float(sum(item.samples for item in made))
    return make_update(learner, window, terms=terms, gradients=gradients, sums=sums, max_norm=max_norm, news=False)


@contextmanager
def frozen(network: nn.Module) -> Any:
    """Within it the network's weights take no gradient; what goes through it does."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield network
    finally:
        for weight in weights:
            weight.requires_grad_(True)
