"""AdamW with weight decay on matrices only and layer-wise learning-rate decay; frozen parameters
are excluded."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
    scales_loss: bool = False,
) -> torch.optim.AdamW:
    """Weight decay applies to weights of linear and convolution layers, not to biases, norms,
    gains, tokens and positions. The learning rate of each encoder layer is `layer_decay` times that
    of the layer above; the top layer has the rate of predictor and head."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    deepest = max(_layer(name) for name, _ in model.named_parameters())
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        is_free = sum(size > 1 for size in parameter.shape) < 2 or name.endswith("positions")
        below = deepest - _layer(name) if layer_decay != 1 and name.startswith("encoder.") else 0
        members[below, is_free].append(parameter)
    groups = [
        {"params": members[key], "weight_decay": 0.0 if key[1] else weight_decay, "scale": layer_decay ** key[0]}
        for key in sorted(members)
    ]
    # the fused update unscales gradients itself, but clipping needs them unscaled before it
    fused = not scales_loss and next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def _layer(name: str) -> int:
    """The encoder layer of a parameter, counted from 1; 0 below the first layer and outside the
    encoder."""
    _, is_layer, rest = name.partition("encoder.encoder.layers.")
    return int(rest.split(".")[0]) + 1 if is_layer else 0
