"""AdamW with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], scales_loss: bool = False
) -> torch.optim.AdamW:
    """Decay pulls on weights of linear and convolution layers, not on biases, norms, gains, tokens and positions."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = sum(size > 1 for size in parameter.shape) >= 2 and not name.endswith("positions")
        (decayed if is_matrix else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    # the fused update undoes a scaled loss by itself, which gradient clipping must do before
    fused = not scales_loss and next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
