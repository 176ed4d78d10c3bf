"""Oracle: transformers.HubertModel with the same weights."""

from dataclasses import replace

import pytest
import torch
from transformers import HubertConfig, HubertModel

from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.activation_memory import Load, training_bytes
from sjepa.s_jepa.model import ModelShape
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from tests.support.encoders import TINY, assert_padding_changes_nothing, padded, waves


def hubert(shape):
    t = shape.transformer
    config = HubertConfig(
        num_hidden_layers=shape.num_layers, hidden_size=t.width, num_attention_heads=t.num_heads, intermediate_size=t.ffn_width,
        conv_dim=(shape.conv_channels,) * 7, num_conv_pos_embeddings=shape.position_kernel,
        num_conv_pos_embedding_groups=shape.position_groups, mask_time_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HubertModel(config).eval()
    with torch.no_grad():  # weights that a trained model could have: norms and biases away from 1 and 0
        for parameter in model.parameters():
            parameter.add_(
                0.1 * parameter.std().nan_to_num(0.0) * torch.randn_like(parameter) + 0.01 * torch.randn_like(parameter)
            )
    return model


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Encoder(TINY).eval()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TINY, EncoderShape()], ids=["tiny", "base"])
def test_encoder_equals_hubert(shape):
    reference = hubert(shape)
    encoder = Encoder(shape).eval()
    encoder.load_state_dict(reference.state_dict())  # every name and shape agrees
    waveform, lengths = padded(waves(16000, 16000))
    with torch.no_grad():
        expected = reference(waveform, output_hidden_states=True)
        ours = encoder(waveform, lengths)
    assert ours.features_BTD.shape == expected.last_hidden_state.shape
    # float32 through six layers: what is left of 1e-5 of the largest value depends on the order in
    # which a CPU adds up
    tolerance = 1e-5 * float(expected.last_hidden_state.abs().max())
    assert (ours.features_BTD - expected.last_hidden_state).abs().max() < tolerance
    for features, theirs in zip(ours.layers, expected.hidden_states[1:], strict=True):
        assert (features - theirs).abs().max() < tolerance


def test_base_has_the_papers_number_of_parameters():
    assert sum(parameter.numel() for parameter in Encoder(EncoderShape()).parameters()) == 51_843_712


def test_training_gradients_equal_huberts_but_for_the_frontends_scale():
    reference = hubert(TINY)
    encoder = Encoder(TINY).eval()
    encoder.load_state_dict(reference.state_dict())
    waveform, lengths = padded(waves(8000, 8000))
    encoder(waveform, lengths).features_BTD.square().mean().backward()
    reference(waveform).last_hidden_state.square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in encoder.named_parameters():
        scale = 0.1 if name.startswith("feature_extractor") else 1.0
        difference = (parameter.grad - scale * expected[name].grad).norm()
        assert difference <= 1e-3 * scale * expected[name].grad.norm() + 1e-6, name


@pytest.mark.parametrize("fill", [0.0, 0.7, float("nan"), float("inf")])
def test_padding_never_changes_features(tiny, fill):
    assert_padding_changes_nothing(tiny, fill)


def test_samples_seen_by_masked_frames_alone_change_nothing(tiny):
    """With the group norm's statistics held fixed. Frames 20 … 39 are masked; samples that no other
    frame sees change."""
    (clip,) = waves(20000)
    mask = torch.zeros(1, 62, dtype=torch.bool)
    mask[0, 20:40] = True
    seen_by_others_until, seen_by_others_from = 19 * 320 + 400, 40 * 320
    other = clip.clone()
    other[seen_by_others_until:seen_by_others_from] = 5 * torch.randn(seen_by_others_from - seen_by_others_until)
    frontend, lengths = tiny.feature_extractor, torch.tensor([20000])
    with torch.no_grad():
        statistics = frontend.statistics(clip[None], lengths)
        before = tiny(clip[None], mask_BT=mask, statistics=statistics).features_BTD
        after = tiny(other[None], mask_BT=mask, statistics=statistics).features_BTD
        unmasked = tiny(other[None], statistics=statistics).features_BTD
    assert torch.equal(before, after)
    assert (before - unmasked).abs().max() > 1e-3


def test_dropped_layers_pass_by_and_stay_in_the_graph(tiny):
    waveform, lengths = padded(waves(8000))
    tiny.zero_grad()
    output = tiny(waveform, lengths, dropped=[1])
    assert torch.equal(output.layers[1], output.layers[0])
    output.features_BTD.sum().backward()
    assert all(parameter.grad is not None for parameter in tiny.parameters())
    assert all(parameter.grad.abs().sum() == 0 for parameter in tiny.encoder.layers[1].parameters())


def test_layers_up_to_an_index_are_those_of_the_whole_pass(tiny):
    waveform, lengths = padded(waves(8000))
    with torch.no_grad():
        whole, part = tiny(waveform, lengths), tiny(waveform, lengths, up_to=1)
    assert len(part.layers) == 2
    assert torch.equal(part.features_BTD, whole.layers[1])


def test_autocast_stays_close(tiny):
    waveform, lengths = padded(waves(8000))
    with torch.no_grad():
        exact = tiny(waveform, lengths).features_BTD
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = tiny(waveform, lengths).features_BTD
    assert ((rough - exact).norm() / exact.norm()) < 0.03  # bfloat16 keeps 8 bits


def test_recomputed_activations_give_the_same_gradients():
    """Dropout included, and with a layer that is passed by."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(16, 3, TransformerShape(32, 2, 64), position_groups=4)).train()
    waveform, samples = padded(waves(8000, 5000))

    def gradients(recomputes):
        encoder.recompute_activations(recomputes)
        encoder.zero_grad()
        torch.manual_seed(1)
        encoder(waveform, samples, dropped=[1]).features_BTD.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    kept = gradients(False)
    assert any(gradient.abs().max() > 0 for gradient in kept)
    for a, b in zip(kept, gradients(True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_recomputed_activations_are_not_kept():
    """Of twelve base layers on 8 × 15 s, far less than half of what is kept otherwise."""
    shape = ModelShape(EncoderShape(num_layers=12), TransformerShape(768, 8, 1536), 500, 800)
    load = Load(
        clips=8, samples=240_000, mask_ratio=0.65, visible=True, averaged=False, autocast=torch.bfloat16, copies=0.0
    )
    kept, recomputed = (training_bytes(shape, replace(load, recomputes=recomputes)) for recomputes in (False, True))
    assert recomputed < 0.5 * kept


def test_attention_weights_are_not_kept():
    """With and without dropout of them, memory grows with the frames, not with their square."""
    shape = ModelShape(EncoderShape(num_layers=2), TransformerShape(768, 8, 1536), 500, 3200)
    undropped = TransformerShape(768, 8, 1536, attention_dropout=0.0)
    bare = replace(shape, predictor=undropped, encoder=replace(shape.encoder, transformer=undropped))

    def count(seconds, own):
        load = Load(
            clips=2, samples=16000 * seconds, mask_ratio=0.65, visible=True, averaged=False, autocast=torch.bfloat16,
            copies=0.0,
        )  # fmt: skip
        return training_bytes(own, load)

    assert count(60, shape) / count(30, shape) < 2.1
    assert count(60, bare) / count(30, bare) < 2.1


def test_the_waveform_has_a_gradient_too(tiny):
    """Against differences, the statistics of the group norm held fixed."""
    frontend, waveform, number = tiny.feature_extractor, waves(4000)[0][None], torch.tensor([4000])
    statistics = frontend.statistics(waveform, number)
    weights = torch.randn(1, 12, TINY.conv_channels)

    def value(x):
        return (frontend(x, number, statistics) * weights).double().sum()

    heard, direction = waveform.clone().requires_grad_(), torch.randn_like(waveform)
    value(heard).backward()
    with torch.no_grad():
        difference = float(value(waveform + 1e-3 * direction) - value(waveform - 1e-3 * direction)) / 2e-3
    assert difference == pytest.approx(float((heard.grad * direction).sum()), rel=0.02)
    assert abs(difference) > 0.01
