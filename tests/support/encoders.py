"""A small encoder, clips for it, and what holds for every encoder."""

import torch

from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.encoder import EncoderShape

TINY = EncoderShape(
    conv_channels=32, num_layers=3, transformer=TransformerShape(64, 4, 128), position_kernel=16, position_groups=4
)


def waves(*lengths, seed=0, scale=0.1):
    torch.manual_seed(seed)
    return [scale * torch.randn(length) for length in lengths]


def padded(clips, fill=0.0):
    batch = torch.full((len(clips), max(map(len, clips))), fill)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch, torch.tensor([len(clip) for clip in clips])


def assert_padding_changes_nothing(encoder, fill):
    clips = waves(8000, 80000, 720)
    batch, lengths = padded(clips, fill)
    with torch.no_grad():
        together = encoder(batch, lengths)
        for row, clip in enumerate(clips):
            alone = encoder(clip[None]).features_BTD[0]
            assert together.real_BT[row].sum() == len(alone)
            assert (together.features_BTD[row, : len(alone)] - alone).abs().max() < 1e-4
