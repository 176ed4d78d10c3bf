import copy

import pytest
import torch

from sjepa.modules.ema import EMAEncoder, switched_decay
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape

SHAPE = EncoderShape(16, 3, TransformerShape(32, 2, 32, 0.3, 0.3, 0.3), position_groups=4)


def encoder(seed=0):
    torch.manual_seed(seed)
    return Encoder(SHAPE)


def test_it_starts_as_a_copy_and_follows_as_plain_loops_do():
    source = encoder()
    average = EMAEncoder(source)
    expected = {name: value.double().clone() for name, value in source.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        decay = (0.9, 0.99, 0.5)[step]
        average.follow(source, decay)
        for name, value in source.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.average.named_parameters():
        assert torch.allclose(value.double(), expected[name], atol=1e-6), name


def test_it_has_no_gradient_no_dropout_and_leaves_the_encoder_alone():
    source = encoder()
    average = EMAEncoder(source).train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())
    audio, samples = torch.randn(2, 8000), torch.tensor([8000, 4000])
    assert torch.equal(average(audio, samples).features_BTD, average(audio, samples).features_BTD)
    before = copy.deepcopy(source.state_dict())
    average.follow(source, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_it_runs_only_as_deep_as_asked():
    average = EMAEncoder(encoder())
    ran = []
    for index, layer in enumerate(average.average.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    audio, samples = torch.randn(1, 8000), torch.tensor([8000])
    shallow = average(audio, samples, up_to=1)
    assert ran == [0, 1]
    whole = average(audio, samples)
    assert len(whole.layers) == 3
    assert torch.equal(shallow.features_BTD, whole.layers[1])


def test_buffers_are_copied_not_averaged():
    source = encoder()
    source.register_buffer("count", torch.zeros(()))
    average = EMAEncoder(source)
    source.count += 5
    average.follow(source, 0.9)
    assert average.average.count == 5


@pytest.mark.parametrize(("step", "expected"), [(0, 0.9), (9, 0.9), (10, 0.99), (19, 0.99), (20, 0.9), (35, 0.99)])
def test_the_decay_alternates_without_blending(step, expected):
    assert switched_decay(step, fast=0.9, slow=0.99, switch_every=10) == expected
