"""AdamW of S-JEPA: no weight decay on positions, layer-wise learning-rate decay."""

from __future__ import annotations

import torch
from torch import nn

from sjepa.training.optimizer import build_adamw


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    layer_decay: float = 1.0,
    scales_loss: bool = False,
) -> torch.optim.AdamW:
    """The learning rate of each encoder layer is `layer_decay` times that of the layer above; the
    top layer has the rate of predictor and head."""
    deepest = max(_layer(name) for name, _ in model.named_parameters())

    def scale(name: str) -> float:
        return layer_decay ** (deepest - _layer(name)) if name.startswith("encoder.") else 1.0

    return build_adamw(
        model,
        lr=lr,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
        scale=scale,
        undecayed=lambda name: name.endswith("positions"),
        scales_loss=scales_loss,
    )


def _layer(name: str) -> int:
    """The encoder layer of a parameter, counted from 1; 0 below the first layer and outside the
    encoder."""
    _, is_layer, rest = name.partition("encoder.encoder.layers.")
    return int(rest.split(".")[0]) + 1 if is_layer else 0
