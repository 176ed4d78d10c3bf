"""AdamW with weight decay on matrices only and a learning rate per group of parameters; frozen
parameters are excluded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn


def build_adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    scale: Callable[[str], float] = lambda name: 1.0,
    undecayed: Callable[[str], bool] = lambda name: False,
    scales_loss: bool = False,
) -> torch.optim.AdamW:
    """Weight decay applies to weights of linear and convolution layers, not to biases, norms, gains
    and tokens, nor to parameters whose name is `undecayed`. The learning rate of a parameter is
    `lr` times the `scale` of its name. `scales_loss`: a loss scaler is used (fp16)."""
    members: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = sum(size > 1 for size in parameter.shape) < 2 or undecayed(name)
            members[scale(name), is_free].append(parameter)
    groups = [
        {"params": members[key], "weight_decay": 0.0 if key[1] else weight_decay, "scale": key[0]}
        for key in sorted(members, key=lambda key: (-key[0], key[1]))
    ]
    # the fused update unscales gradients itself, but clipping needs them unscaled before it
    fused = not scales_loss and next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
