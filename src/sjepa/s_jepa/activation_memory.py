"""Estimate of the memory needed to train S-JEPA, computed with fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.modules.masking import num_masked
from sjepa.training.memory import saved_bytes


@dataclass(frozen=True, kw_only=True)
class Load:
    """Inputs of the memory estimate, for a micro-batch of `clips` clips of `samples` samples.
    `visible`: the loss covers visible frames too; `averaged`: there is an EMA encoder; `copies`:
    copies of the weights in memory (weights, gradients, moments); `recomputes`: gradient
    checkpointing of transformer layers."""

    clips: int
    samples: int
    mask_ratio: float
    visible: bool
    averaged: bool
    autocast: torch.dtype | None
    copies: float = 4.0
    recomputes: bool = False


def training_bytes(shape: ModelShape, load: Load) -> int:
    """Bytes of weights, gradients, optimiser state and tensors saved for the backward pass.
    Excludes workspaces and allocator overhead."""
    frames = shape.encoder.geometry.frames(load.samples)
    masked = load.clips * num_masked(frames, load.mask_ratio)
    visible = load.clips * frames - masked if load.visible else 0
    sizes: list[int] = []

    def build() -> SJEPA:
        network = SJEPA(shape).train()
        network.encoder.recompute_activations(load.recomputes)
        sizes.extend(_bytes(module) for module in (network, network.encoder))
        return network

    def call(network: SJEPA) -> None:
        network(
            torch.empty(load.clips, load.samples),
            torch.full((load.clips,), load.samples),
            torch.empty(load.clips, frames, dtype=torch.bool),
            torch.empty(masked, dtype=torch.int64),
            torch.empty(visible, dtype=torch.int64),
        )

    activations = saved_bytes(build, call, autocast=load.autocast)
    whole, encoder = sizes
    return activations + round(load.copies * whole) + load.averaged * encoder


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nelement() * parameter.element_size() for parameter in module.parameters())
