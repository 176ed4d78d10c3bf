"""Posteriors of a model at every frame, from the encoder and from the predictor. [Entropy analysis]

B batch, S samples, T frames, N real frames (flat, clip by clip), K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.frames import FrameGeometry
from sjepa.core.random import key
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.s_jepa.step import Forward, choose_frames

THRESHOLDS_BITS = (0.5, 1.0, 2.0)
_BINS_PER_BIT = 20


class Readings(NamedTuple):
    """Log posteriors [N, K] of all real frames of a batch, clip by clip: `encoder_NK`, head on
    unmasked encoder output; `predictor_NK`, head on predictor output, each frame while masked.
    `frame_N`: their flat indices b·T + t."""

    encoder_NK: Tensor
    predictor_NK: Tensor
    frame_N: Tensor


@torch.no_grad()
def read_frames(forward: Forward, batch: Batch) -> Readings:
    """Encoder and predictor posteriors of a batch on the engine's device. The predictor takes two
    passes: the validation mask and its complement. `model` must be in evaluation mode."""
    engine, model, settings = forward.engine, forward.model, forward.settings
    frames = choose_frames(batch, mask_key=key(settings.seed, "validation mask"), settings=settings)
    every_N = real_frames(batch, settings.geometry)
    position_N = torch.empty(frames.mask_BT.numel(), dtype=torch.int64, device=every_N.device)
    position_N[every_N] = torch.arange(len(every_N), device=every_N.device)
    predictor_NK = torch.empty(0)
    for masked_N in (frames.masked_N, frames.visible_N):
        mask_BT = torch.zeros_like(frames.mask_BT)
        mask_BT.view(-1)[masked_N] = True
        found_MK, _ = _logits(engine, model, batch, mask_BT, masked_N, masked_N[:0])
        if not len(predictor_NK):
            predictor_NK = found_MK.new_empty(len(every_N), found_MK.shape[1])
        predictor_NK[position_N[masked_N]] = found_MK
    return Readings(read_encoder(engine, model, batch, settings.geometry), predictor_NK, every_N)


@torch.no_grad()
def read_encoder(engine: Engine, model: Any, batch: Batch, geometry: FrameGeometry) -> Tensor:
    """Log posteriors of the encoder only, [N, K]."""
    every_N = real_frames(batch, geometry)
    longest = geometry.frames(batch.clean_BS.shape[1])
    nothing_BT = torch.zeros(len(batch.num_samples), longest, dtype=torch.bool, device=every_N.device)
    return _logits(engine, model, batch, nothing_BT, every_N[:0], every_N)[1]


def real_frames(batch: Batch, geometry: FrameGeometry) -> Tensor:
    """The flat indices b·T + t of all real frames, clip by clip, on the batch's device."""
    longest = geometry.frames(batch.clean_BS.shape[1])
    rows = [torch.arange(geometry.frames(samples)) + row * longest for row, samples in enumerate(batch.num_samples)]
    return torch.cat(rows).to(batch.clean_BS.device)


def _logits(
    engine: Engine, model: Any, batch: Batch, mask_BT: Tensor, masked_N: Tensor, visible_N: Tensor
) -> tuple[Tensor, Tensor]:
    num_samples_B = to_device(batch.num_samples, engine.device)
    with engine.autocast():
        logits = model(batch.clean_BS, num_samples_B, mask_BT, masked_N, visible_N)
    return logits.masked_NK.float().log_softmax(-1), logits.visible_NK.float().log_softmax(-1)


def entropy_bits(log_posteriors_NK: Tensor) -> Tensor:
    """Entropy of each frame, bits, [N]."""
    return -(log_posteriors_NK.exp() * log_posteriors_NK).sum(-1) / math.log(2)


@dataclass
class EntropyHistogram:
    """Histogram of frame entropies over [0, log2 K], bins of 1/20 bit; exact shares above 0.5, 1
    and 2 bits."""

    num_components: int
    count_E: NDArray[np.int64] = field(init=False)
    frames: int = 0
    total_bits: float = 0.0
    above: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS_BITS))

    def __post_init__(self) -> None:
        self.count_E = np.zeros(math.ceil(math.log2(self.num_components) * _BINS_PER_BIT) + 1, np.int64)

    @property
    def edges_bits(self) -> NDArray[np.float64]:
        return np.arange(len(self.count_E) + 1) / _BINS_PER_BIT

    @property
    def mean_bits(self) -> float:
        return self.total_bits / self.frames

    @property
    def shares_above(self) -> list[float]:
        """The shares of frames above `THRESHOLDS_BITS`."""
        return [count / self.frames for count in self.above]

    def add(self, bits_N: Tensor) -> None:
        bits = bits_N.cpu().double().clamp(min=0).numpy()
        bins = np.minimum((bits * _BINS_PER_BIT).astype(np.int64), len(self.count_E) - 1)
        self.count_E += np.bincount(bins, minlength=len(self.count_E))
        self.frames += len(bits)
        self.total_bits += float(bits.sum())
        self.above = [
            count + int((bits > threshold).sum()) for count, threshold in zip(self.above, THRESHOLDS_BITS, strict=True)
        ]
