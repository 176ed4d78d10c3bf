"""Classification probes on frozen features. [Probing]

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
MIX_RATE = 0.03  # Adam learning rate of the layer weights; the network's rate is too low for them
_MLP_WIDTH, _MLP_DROPOUT, _MLP_RATE, _MLP_BATCH, _MLP_EPOCHS = 256, 0.1, 1e-3, 512, 20
_MLP_FEWEST_UPDATES = 16  # per epoch

Classify = Callable[[Tensor], Tensor]


class LayerMix(nn.Module):
    """Weighted sum of all layers, each standardised with training statistics, with learned
    softmax weights (Yang et al. 2021, SUPERB). A single layer is only standardised."""

    mean_LD: Tensor
    deviation_LD: Tensor

    def __init__(self, train: Sequence[Tensor]) -> None:
        """`train`: the training examples in any number of parts [N, L, D]. Constant features are
        not scaled."""
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
    """Multinomial logistic regression: L2 penalty 1/(2C) on the weights, L-BFGS; same optimum as
    scikit-learn.

    Returns a classifier: features [N, L, D] to classes [N].
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
    """MLP with two hidden layers of 256, ReLU and dropout 0.1; Adam 1e-3, 20 epochs, batch size
    512 or, with few examples, N / 16, so that an epoch has at least 16 updates. Returns a
    classifier: features [N, L, D] to classes [N]."""
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
    """Adam parameter groups; the layer weights have their own learning rate."""
    others = [parameter for parameter in network.parameters() if parameter is not mix.logits_L]
    return [{"params": others, "lr": rate}, {"params": [mix.logits_L], "lr": MIX_RATE}]


@torch.no_grad()
def _classes(network: nn.Module, x_NLD: Tensor) -> Tensor:
    network.eval()
    return network(x_NLD).argmax(1)  # type: ignore[no-any-return]
