"""Feature extractors for probes: encoder layers and mixture posteriors. B batch, T frames,
L layers, D features."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.random import key
from sjepa.evaluation.features import Extractor
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.pretrained import PretrainedEncoder
from sjepa.s_jepa.targets.base import Targets


def encoder_extractor(name: str, encoder: PretrainedEncoder, engine: Engine) -> Extractor:
    on_device = engine.to_device(encoder)

    def compute(waveform_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None) -> Tensor:
        with engine.autocast():
            return on_device(waveform_BS, num_samples_B, layer="all")  # type: ignore[no-any-return]

    return Extractor(name, encoder.num_layers, encoder.geometry, engine.device, compute)


def untrained(trained: Encoder, seed: int) -> Encoder:
    """A randomly initialised encoder of the same shape, with the buffers (corpus statistics) of the
    trained one."""
    torch.manual_seed(key(seed, "untrained"))
    encoder = Encoder(trained.shape)
    for own, measured in zip(encoder.buffers(), trained.buffers(), strict=True):
        own.copy_(measured)
    return encoder


def untrained_extractor(trained: Encoder, seed: int, engine: Engine) -> Extractor:
    return encoder_extractor("untrained", PretrainedEncoder(untrained(trained, seed)), engine)


def posterior_extractor(targets: Targets, engine: Engine) -> Extractor:
    """The soft targets of training as features."""

    def compute(waveform_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None) -> Tensor:
        frames = targets.geometry.frames(waveform_BS.shape[1])
        every_N = torch.arange(len(waveform_BS) * frames, device=waveform_BS.device)
        with engine.autocast():
            posteriors_NK = targets.posteriors(waveform_BS, num_samples_B, every_N, speaker_B)
        return posteriors_NK.view(1, len(waveform_BS), frames, -1)

    return Extractor("posteriors of the mixture", 1, targets.geometry, engine.device, compute)
