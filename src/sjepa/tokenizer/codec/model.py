"""A codec on its device, as what token files are made and read with; its reach and operations. T
frames, G groups."""

from __future__ import annotations

import hashlib
import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from sjepa.dataset.audio import Waveform
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.tokens import Ints, TokenModel
from sjepa.tokenizer.modules.decoder import DecoderShape


def token_model(codec: Codec) -> TokenModel:
    """`codec` in evaluation mode."""
    device, geometry = next(codec.parameters()).device, codec.encoder.geometry

    @torch.no_grad()
    def encode(waveform_S: Waveform) -> Ints:
        return codec.encode(torch.from_numpy(waveform_S).to(device)[None])[0].cpu().numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(tokens_TG: Ints, samples: int) -> Waveform:
        audio_S = codec.decode(torch.from_numpy(tokens_TG).to(device)[None])[0]
        return audio_S[:samples].float().cpu().numpy()  # type: ignore[no-any-return]

    return TokenModel(
        identity(codec),
        codec.fsq.describe(geometry.sample_rate / geometry.hop_samples),
        geometry.sample_rate,
        geometry.hop_samples,
        codec.fsq.vocabulary,
        reach(codec.decoder.shape),
        encode,
        decode,
    )


def identity(codec: Codec) -> str:
    """16 hexadecimal digits that change with encoder, whitening and quantiser."""
    digest = hashlib.blake2b(repr((codec.fsq.levels, codec.fsq.group, codec.encoder.shape)).encode(), digest_size=8)
    for name, value in sorted((codec.encoder.state_dict() | codec.whitening.state_dict()).items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def reach(shape: DecoderShape) -> int:
    """Frames before and after a frame that its audio depends on, rounded up."""
    steps, total = 1, 0.0  # steps of a frame
    block = max(sum((kernel // 2) * (dilation + 1) for dilation in shape.dilations) for kernel in shape.kernels)
    for stride in shape.strides:
        total += 1 / steps
        steps *= stride
        total += block / steps if shape.kind == "hifigan" else 0.0
    total += (shape.blocks * 3 + 4) / steps if shape.kind == "istft" else 3 / steps
    return math.ceil(total) + 1


@torch.no_grad()
def operations(codec: Codec) -> tuple[float, float]:
    """Floating point operations (matrix products and convolutions) to encode and to decode a second
    of audio; counted over the fewest whole frames of at least a second. `codec` on the CPU."""
    geometry = codec.encoder.geometry
    frames = -(-geometry.sample_rate // geometry.hop_samples)
    samples = frames * geometry.hop_samples
    was_training, counts = codec.training, []
    codec.eval()
    values_1TD = torch.zeros(1, frames, codec.encoder.shape.width)
    for part, given in ((codec.encoder, torch.zeros(1, samples)), (codec.decoder, values_1TD)):
        with FlopCounterMode(display=False) as counter:
            part(given)
        counts.append(counter.get_total_flops() * geometry.sample_rate / samples)
    codec.train(was_training)
    return counts[0], counts[1]
