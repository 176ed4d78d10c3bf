"""What frozen features are good for: linear probes. N examples, D features, C classes, T frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.random import generator, key

_BLANK = 0


class Standardiser(NamedTuple):
    """Mean and deviation [D] of training features."""

    mean_D: Tensor
    deviation_D: Tensor

    @staticmethod
    def of(features_ND: Tensor) -> Standardiser:
        return Standardiser(features_ND.mean(0), features_ND.std(0, correction=0).clamp(min=1e-6))

    def __call__(self, features_ND: Tensor) -> Tensor:
        return (features_ND - self.mean_D) / self.deviation_D


def logistic_regression(
    train_ND: Tensor,
    train_N: Tensor,
    test_ND: Tensor,
    *,
    num_classes: int,
    inverse_penalty: float = 1.0,
    steps: int = 2000,
) -> Tensor:
    """Classes [N] that a multinomial logistic regression predicts for `test_ND`: L2 penalty 1/(2C) on the weights, L-BFGS,
    features standardised with training statistics. Its optimum is scikit-learn's. [Probing]"""
    scale = Standardiser.of(train_ND.float())
    x_ND, test_ND = scale(train_ND.float()), scale(test_ND.float())
    linear = nn.Linear(x_ND.shape[1], num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = 0.5 * linear.weight.square().sum() / inverse_penalty
        value = F.cross_entropy(linear(x_ND), train_N) + penalty / len(x_ND)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return linear(test_ND).argmax(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Transcribed:
    """Features [T, D] of a clip and its symbols, numbered from 1."""

    features_TD: Tensor
    symbols: tuple[int, ...]


def linear_ctc(
    train: Sequence[Transcribed],
    test: Sequence[Tensor],
    *,
    num_symbols: int,
    seed: int,
    epochs: int = 30,
    batch_clips: int = 16,
    lr: float = 5e-3,
) -> list[tuple[int, ...]]:
    """The symbols that a linear CTC head, trained on `train`, finds in each of `test` ([T, D]) by greedy decoding.

    Clips whose transcript does not fit into their frames are left out of training. Raises ValueError if none is left.
    (Graves et al. 2006)
    """
    fitting = [clip for clip in train if len(clip.features_TD) >= _frames_needed(clip.symbols)]
    if not fitting:
        raise ValueError("no clip is long enough for its transcript")
    scale = Standardiser.of(torch.cat([clip.features_TD for clip in fitting]).float())
    torch.manual_seed(key(seed, "probe"))
    linear = nn.Linear(fitting[0].features_TD.shape[1], num_symbols + 1)
    optimizer = torch.optim.Adam(linear.parameters(), lr=lr)
    total = epochs * -(-len(fitting) // batch_clips)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total)
    for epoch in range(epochs):
        order = generator(seed, "probe order", epoch).permutation(len(fitting)).tolist()
        for start in range(0, len(order), batch_clips):
            clips = [fitting[index] for index in order[start : start + batch_clips]]
            logits = linear(scale(torch.cat([clip.features_TD for clip in clips]).float()))
            optimizer.zero_grad()
            _ctc_loss(logits, clips).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return [_greedy(linear(scale(features_TD.float()))) for features_TD in test]


def _frames_needed(symbols: Sequence[int]) -> int:
    """A blank must separate a symbol from its repetition."""
    return len(symbols) + sum(a == b for a, b in pairwise(symbols))


def _ctc_loss(logits_NC: Tensor, clips: Sequence[Transcribed]) -> Tensor:
    lengths = [len(clip.features_TD) for clip in clips]
    padded = nn.utils.rnn.pad_sequence(list(F.log_softmax(logits_NC, dim=1).split(lengths)))
    symbols = torch.tensor([symbol for clip in clips for symbol in clip.symbols])
    return F.ctc_loss(
        padded, symbols, torch.tensor(lengths), torch.tensor([len(clip.symbols) for clip in clips]), blank=_BLANK
    )


def _greedy(logits_TC: Tensor) -> tuple[int, ...]:
    """The likeliest symbol of each frame, repetitions merged, blanks removed."""
    best = torch.unique_consecutive(logits_TC.argmax(1))
    return tuple(int(symbol) for symbol in best if symbol != _BLANK)
