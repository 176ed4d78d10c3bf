"""Estimated memory of a training step."""

from __future__ import annotations

from sjepa.tokenizer.network import TokenJEPA

_STATES = 5  # float32 copies of the weights: themselves, gradient, two moments, EMA
_PER_UNIT = 6  # tensors that a pair of convolutions keeps
_PER_LEVEL = 6  # convolution, Snake and attention
_PER_BLOCK = 40  # tensors of the width that a Conformer block keeps, with those of its inner widths


def training_bytes(network: TokenJEPA, clips: int, samples: int) -> int:
    """Weights, optimiser and activations for `clips` clips of `samples` samples, in float32."""
    shape = network.shape.encoder
    steps, values = samples, 3 * samples * shape.channels[0]
    for channels, stride in zip(shape.channels[1:], shape.strides, strict=True):
        steps = -(-steps // stride)
        values += steps * channels * (_PER_LEVEL + 3 * _PER_UNIT * shape.residual_blocks)
    for block, layers in ((shape.conformer, shape.conformer_layers), (network.shape.predictor, 2)):
        values += layers * steps * (_PER_BLOCK * block.width + block.num_heads * min(steps, 256))
    weights = sum(weight.numel() for weight in network.parameters())
    return 4 * (_STATES * weights + clips * values)
