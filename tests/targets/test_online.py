"""Targets that follow the encoder."""

import copy
import math

import pytest
import torch

from sjepa.core.ranks import ALONE
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.modules.ema import EMAEncoder
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from sjepa.s_jepa.targets.base import FrameChoice
from sjepa.s_jepa.targets.layer_choice import LayerChoice
from sjepa.s_jepa.targets.online import OnlineSettings, OnlineTargets

SHAPE = EncoderShape(16, 3, TransformerShape(32, 2, 32), position_groups=4)


def targets(layer=1, every=None, decay=0.9):
    torch.manual_seed(0)
    encoder = Encoder(SHAPE)
    gmm = DiagonalGMM(6, 32, features="encoder32")
    gmm.set_parameters(torch.rand(6) + 0.5, torch.randn(6, 32), torch.ones(6, 32))
    settings = OnlineSettings(decay, lambda step: 0.5, every)
    return OnlineTargets(gmm, EMAEncoder(encoder), LayerChoice(layer, smoothing=0.9), settings), encoder


AUDIO, SAMPLES = 0.3 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)), torch.tensor([16000, 8000])
REAL = torch.cat([torch.arange(49), 49 + torch.arange(24)])


def choice(chosen, other):
    draw = torch.rand(len(chosen) + len(other), generator=torch.Generator().manual_seed(2))
    return FrameChoice(chosen, other, draw)


def test_targets_are_posteriors_of_the_active_layer_of_the_ema_encoder():
    for layer in range(3):
        online, encoder = targets(layer)
        features = encoder.eval()(AUDIO, SAMPLES).layers[layer].flatten(0, 1)[REAL[:10]]
        expected = online.gmm.posteriors(features).responsibilities_NK
        got = online.posteriors(AUDIO, SAMPLES, REAL[:10])
        assert torch.allclose(got, expected, atol=1e-6)
        assert not got.requires_grad


def test_observing_gives_the_same_posteriors_and_counts_frames_outside_the_loss_too():
    some, rest = REAL[::2], REAL[1::2]
    narrow, _ = targets()
    wide, encoder = targets()
    assert torch.equal(narrow.observe(AUDIO, SAMPLES, choice(some, rest)), narrow.posteriors(AUDIO, SAMPLES, some))
    wide.observe(AUDIO, SAMPLES, choice(torch.cat([some, rest]), REAL[:0]))
    for one in (narrow, wide):
        one.after_update(encoder, 0, ALONE)
    assert torch.allclose(narrow.gmm.means, wide.gmm.means, atol=1e-6)
    only, _ = targets()
    only.observe(AUDIO, SAMPLES, choice(some, REAL[:0]))
    only.after_update(encoder, 0, ALONE)
    assert not torch.allclose(narrow.gmm.means, only.gmm.means, atol=1e-6)


def test_nothing_moves_before_the_update_and_nothing_at_all_if_it_is_left_out():
    online, encoder = targets()
    before = {name: value.clone() for name, value in online.state_dict().items() if isinstance(value, torch.Tensor)}
    online.observe(AUDIO, SAMPLES, choice(REAL, REAL[:0]))
    online.discard()
    for name, value in before.items():
        assert torch.equal(online.state_dict()[name], value), name
    online.observe(AUDIO, SAMPLES, choice(REAL, REAL[:0]))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    online.after_update(encoder, 0, ALONE)
    name = "encoder.average.feature_projection.projection.bias"
    assert torch.allclose(online.state_dict()[name], before[name] + 0.5)
    assert not torch.equal(online.state_dict()["gmm.means"], before["gmm.means"])


def test_padding_is_never_counted():
    online, encoder = targets()
    alone, _ = targets()
    online.observe(AUDIO, SAMPLES, choice(REAL, REAL[:0]))
    alone.observe(AUDIO[:1], SAMPLES[:1], choice(REAL[:49], REAL[:0]))
    alone.observe(AUDIO[1:, :8000], SAMPLES[1:], choice(torch.arange(24), REAL[:0]))
    for one in (online, alone):
        one.after_update(encoder, 0, ALONE)
    assert torch.allclose(online.gmm.means, alone.gmm.means, atol=1e-4)
    assert torch.allclose(online.gmm.weights, alone.gmm.weights, atol=1e-5)


def test_state_comes_back_whole():
    online, encoder = targets()
    online.observe(AUDIO, SAMPLES, choice(REAL, REAL[:0]))
    online.after_update(encoder, 0, ALONE)
    online.choose_layer((1.0, 2.0, 5.0))
    other, _ = targets(layer=0)
    other.load_state_dict(online.state_dict())
    assert other.figures() == online.figures()
    assert other.layer == 2
    assert torch.equal(other.posteriors(AUDIO, SAMPLES, REAL), online.posteriors(AUDIO, SAMPLES, REAL))


def test_checks_come_every_so_many_steps_or_never():
    online, _ = targets(every=10)
    assert [step for step in range(31) if online.layer_check_due(step)] == [10, 20, 30]
    never, _ = targets(every=None)
    assert not any(never.layer_check_due(step) for step in range(31))


def test_the_layer_of_highest_smoothed_rank_is_chosen():
    layers = LayerChoice(0, smoothing=0.9)
    assert not layers.offer((10.0, 5.0, 1.0))  # the first check is taken as it is
    assert not layers.offer((10.0, 40.0, 1.0))  # 0.9 · 5 + 0.1 · 40 = 8.5: one high value is not enough
    assert layers.scores == pytest.approx((10.0, 8.5, 1.0))
    assert layers.offer((10.0, 40.0, 1.0))  # 11.65
    assert layers.layer == 1
    assert not layers.offer((math.nan, 1.0, 99.0))
    assert layers.layer == 1


def test_targets_that_are_held_move_only_when_they_are_renewed():
    online, encoder = targets()
    held = OnlineTargets(online.gmm, online.encoder, LayerChoice(1, smoothing=0.9),
                         OnlineSettings(0.9, lambda step: 0.5, None, hold_steps=4))  # fmt: skip
    before = {name: value.clone() for name, value in held.state_dict().items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    some = REAL[::2]
    assert torch.equal(held.observe(AUDIO, SAMPLES, choice(some, REAL[1::2])), held.posteriors(AUDIO, SAMPLES, some))
    held.after_update(encoder, 0, ALONE)
    for name, value in before.items():
        assert torch.equal(held.state_dict()[name], value), name
    assert [step for step in range(9) if held.renewal_due(step)] == [4, 8]
    held.renew(encoder)
    for own, new in zip(held.encoder.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(own, new)
    assert not any(online.renewal_due(step) for step in range(9))


def test_tempered_targets_leave_the_mixtures_own_statistics_alone():
    """Softer posteriors for the loss, and the same movement of the mixture."""
    plain, encoder = targets()
    space = MixtureSpace(SpaceSettings(entropy_bits=1.0), 32)
    space.temperature.fill_(3.0)
    soft = OnlineTargets(copy.deepcopy(plain.gmm), plain.encoder, LayerChoice(1, smoothing=0.9), plain.settings, space)
    sharp_NK, soft_NK = (one.observe(AUDIO, SAMPLES, choice(REAL, REAL[:0])) for one in (plain, soft))
    assert torch.special.entr(soft_NK).sum() > 1.5 * torch.special.entr(sharp_NK).sum()
    for one in (plain, soft):
        one.after_update(encoder, 0, ALONE)
    assert torch.equal(plain.gmm.means, soft.gmm.means)


def test_features_are_normalised_over_each_clips_own_frames():
    online, _ = targets()
    space = MixtureSpace(SpaceSettings("clip"), 32)
    own = OnlineTargets(online.gmm, online.encoder, LayerChoice(1, smoothing=0.9), online.settings, space)
    found = own.features(AUDIO, SAMPLES, REAL)
    for rows in (found[:49], found[49:]):
        assert rows.mean(0).abs().max() < 1e-4
        assert (rows.std(0, correction=0) - 1).abs().max() < 1e-3
    alone = own.features(AUDIO[1:, :8000], SAMPLES[1:], torch.arange(24))
    assert torch.allclose(found[49:], alone, atol=1e-3)
