"""Probes that name the class of an example from frozen features. [Probing]

N examples, L layers, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.random import generator, key

_LEAST_DEVIATION = 1e-6
MIX_RATE = 0.03  # Adam's, for the few weights of layers, which would hardly move at that of a network
_MLP_WIDTH, _MLP_DROPOUT, _MLP_RATE, _MLP_BATCH, _MLP_EPOCHS = 256, 0.1, 1e-3, 512, 20
_MLP_FEWEST_UPDATES = 16  # in an epoch

Classify = Callable[[Tensor], Tensor]


class LayerMix(nn.Module):
    """Features of all layers standardised with training statistics, and added up with learned weights that sum to 1
    (Yang et al. 2021, SUPERB). A single layer is only standardised."""

    mean_LD: Tensor
    deviation_LD: Tensor

    def __init__(self, train: Sequence[Tensor]) -> None:
        """`train`: the training examples in any number of parts [N, L, D]. What is constant there is not scaled."""
        super().__init__()
        count = sum(map(len, train))
        mean_LD = torch.stack([part.float().sum(0) for part in train]).sum(0) / count
        squares = torch.stack([(part.float() - mean_LD).square().sum(0) for part in train]).sum(0)
        deviation_LD = (squares / count).sqrt()
        self.register_buffer("mean_LD", mean_LD)
        self.register_buffer("deviation_LD", deviation_LD.where(deviation_LD > _LEAST_DEVIATION, 1.0))
        self.logits_L = nn.Parameter(torch.zeros(len(mean_LD), device=mean_LD.device))

    @property
    def width(self) -> int:
        return self.mean_LD.shape[1]

    def forward(self, x_NLD: Tensor) -> Tensor:
        """[N, L, D] → [N, D]"""
        standard_NLD = (x_NLD.float() - self.mean_LD) / self.deviation_LD
        if standard_NLD.shape[1] == 1:
            return standard_NLD[:, 0]
        return torch.einsum("nld,l->nd", standard_NLD, self.logits_L.softmax(0))


def logistic_regression(
    train_NLD: Tensor, train_N: Tensor, *, num_classes: int, inverse_penalty: float = 1.0, steps: int = 2000
) -> Classify:
    """A multinomial logistic regression: L2 penalty 1/(2C) on the weights, L-BFGS. Its optimum is scikit-learn's.

    Returns what maps features [N, L, D] to classes [N].
    """
    mix = LayerMix([train_NLD])
    linear = nn.Linear(mix.width, num_classes, device=train_NLD.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    trained = [*linear.parameters(), *([mix.logits_L] if train_NLD.shape[1] > 1 else [])]
    optimizer = torch.optim.LBFGS(
        trained, max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )
    fixed_ND = mix(train_NLD).detach() if train_NLD.shape[1] == 1 else None

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = 0.5 * linear.weight.square().sum() / inverse_penalty
        x_ND = mix(train_NLD) if fixed_ND is None else fixed_ND
        value = F.cross_entropy(linear(x_ND), train_N) + penalty / len(x_ND)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return lambda x_NLD: _classes(nn.Sequential(mix, linear), x_NLD)


def multilayer_perceptron(train_NLD: Tensor, train_N: Tensor, *, num_classes: int, seed: int) -> Classify:
    """Two hidden layers of 256 with ReLU and dropout 0.1; Adam 1e-3, 20 epochs of batches of 512, or of a sixteenth of the
    examples if there are few: an epoch has at least 16 updates. Returns what maps features [N, L, D] to classes [N]."""
    torch.manual_seed(key(seed, "probe"))
    mix = LayerMix([train_NLD])
    network = nn.Sequential(
        mix,
        nn.Linear(mix.width, _MLP_WIDTH), nn.ReLU(), nn.Dropout(_MLP_DROPOUT),
        nn.Linear(_MLP_WIDTH, _MLP_WIDTH), nn.ReLU(), nn.Dropout(_MLP_DROPOUT),
        nn.Linear(_MLP_WIDTH, num_classes),
    ).to(train_NLD.device)  # fmt: skip
    optimizer = torch.optim.Adam(parameter_groups(network, mix, _MLP_RATE))
    batch_examples = max(1, min(_MLP_BATCH, len(train_N) // _MLP_FEWEST_UPDATES))
    for epoch in range(_MLP_EPOCHS):
        order = torch.from_numpy(generator(seed, "probe order", epoch).permutation(len(train_N)))
        for batch in order.to(train_N.device).split(batch_examples):
            optimizer.zero_grad()
            F.cross_entropy(network(train_NLD[batch]), train_N[batch]).backward()
            optimizer.step()
    return lambda x_NLD: _classes(network, x_NLD)


def parameter_groups(network: nn.Module, mix: LayerMix, rate: float) -> list[dict[str, Any]]:
    """The parameters of a network for Adam, the weights of its layer mix with a rate of their own."""
    others = [parameter for parameter in network.parameters() if parameter is not mix.logits_L]
    return [{"params": others, "lr": rate}, {"params": [mix.logits_L], "lr": MIX_RATE}]


@torch.no_grad()
def _classes(network: nn.Module, x_NLD: Tensor) -> Tensor:
    network.eval()
    return network(x_NLD).argmax(1)  # type: ignore[no-any-return]
