"""One optimiser update: what it depends on, and what it must not depend on."""

import math
from dataclasses import replace

import pytest
import torch

from sjepa.core.frames import SPEECH, FrameGeometry
from sjepa.core.ranks import ALONE
from sjepa.dataset.batch import Batch, Failure, collate
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.optimizer import build_optimizer
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.step import choose_frames, observed, plain_posteriors
from sjepa.s_jepa.targets.frozen import MFCCTargets
from tests.support.steps import CLIPS, Setup, batch, sample


@pytest.mark.slow
@pytest.mark.parametrize("visible", [True, False])
def test_accumulation_does_not_change_the_gradient(visible):
    """The loss is one mean over all frames of the update, however they are cut into micro-batches."""
    whole, parts, singles = (Setup(f"train.use_visible_loss={str(visible).lower()}") for _ in range(3))
    whole.update([batch(*CLIPS)])
    parts.update([batch(CLIPS[0]), batch(*CLIPS[1:])])
    singles.update([batch(clip) for clip in CLIPS])
    reference = whole.gradient()
    assert reference.norm() > 0
    for other in (parts, singles):
        assert (other.gradient() - reference).norm() < 1e-5 * reference.norm()


@pytest.mark.parametrize("overrides", [(), ("train.spectral_warmup=0.5", "model.predictor_positions=convolution")])
def test_a_batch_without_padding_is_the_same_with_and_without_lengths(monkeypatch, overrides):
    """Without them attention has no mask."""
    clips = [sample(number, 1.0) for number in range(3)]
    assert batch(*clips).lengths() is None
    assert batch(*CLIPS).lengths().tolist() == [len(clip.clean) for clip in CLIPS]
    without, given = Setup(*overrides), Setup(*overrides)
    without.update([batch(*clips)])
    monkeypatch.setattr(Batch, "lengths", lambda self: torch.tensor(self.num_samples))
    given.update([batch(*clips)])
    assert (without.gradient() - given.gradient()).norm() < 1e-5 * given.gradient().norm()


@pytest.mark.slow
def test_metrics_are_sums_over_frames_and_loss_covers_what_the_stage_says():
    both, masked = Setup(), Setup("train.use_visible_loss=false")
    both.update([batch(*CLIPS[:2]), batch(*CLIPS[2:])])
    masked.update([batch(*CLIPS)])
    a, b = both.sums.read(), masked.sums.read()
    assert a.kl == pytest.approx(b.kl, rel=1e-5)
    assert b.loss == pytest.approx(b.kl, rel=1e-6)
    assert a.loss != pytest.approx(a.kl, rel=1e-4)
    frames = [(len(clip.clean) - 400) // 320 + 1 for clip in CLIPS]
    assert a.frames == sum(max(1, min(n - 1, math.floor(0.65 * n))) for n in frames)
    assert 0 <= a.entropy_bits <= math.log2(8) + 1e-6
    assert 1 <= a.clusters_used <= 8 + 1e-6


@pytest.mark.slow
def test_a_visible_frame_counts_as_much_as_its_weight_says():
    """Between the loss over masked frames alone and that over all; accumulation still changes
    nothing."""
    light, parts = Setup("train.visible_weight=0.25"), Setup("train.visible_weight=0.25")
    all_alike, masked = Setup(), Setup("train.use_visible_loss=false")
    for one in (light, all_alike, masked):
        one.update([batch(*CLIPS)])
    parts.update([batch(CLIPS[0]), batch(*CLIPS[1:])])
    assert (parts.gradient() - light.gradient()).norm() < 1e-5 * light.gradient().norm()
    a, b = all_alike.sums.read(), light.sums.read()
    frames = [(len(clip.clean) - 400) // 320 + 1 for clip in CLIPS]
    hidden, every = a.frames, sum(frames)
    shown = (a.loss * every - a.kl * hidden) / (every - hidden)  # mean over visible frames
    assert b.loss == pytest.approx(
        (a.kl * hidden + 0.25 * shown * (every - hidden)) / (hidden + 0.25 * (every - hidden)), rel=1e-5
    )
    expected = (hidden * masked.gradient() + 0.25 * (every * all_alike.gradient() - hidden * masked.gradient())) / (
        hidden + 0.25 * (every - hidden)
    )
    assert torch.nn.functional.cosine_similarity(light.gradient(), expected, dim=0) > 0.9999


@pytest.mark.slow
def test_an_update_depends_on_its_step_and_nothing_before_it():
    first, second = Setup(dropout=True), Setup(dropout=True)
    torch.rand(1000)
    first.update([batch(*CLIPS)], step=5)
    torch.manual_seed(99)
    second.update([batch(*CLIPS)], step=5)
    assert torch.equal(first.weights(), second.weights())


@pytest.mark.slow
def test_masks_change_with_the_step():
    first, second = Setup(), Setup()
    first.update([batch(*CLIPS)], step=5)
    second.update([batch(*CLIPS)], step=6)
    assert not torch.equal(first.gradient(), second.gradient())


@pytest.mark.slow
def test_targets_come_from_the_clean_waveform_and_predictions_from_the_heard_one():
    noise = [0.05 * torch.randn(len(clip.clean)).numpy() for clip in CLIPS]
    noisy = [clip._replace(heard=clip.clean + added) for clip, added in zip(CLIPS, noise, strict=True)]
    clean, mixed, both = Setup(), Setup(), Setup()
    clean.update([batch(*CLIPS)])
    mixed.update([batch(*noisy)])
    both.update([batch(*(clip._replace(clean=clip.heard) for clip in noisy))])
    assert mixed.sums.read().clusters_used == clean.sums.read().clusters_used  # the targets' own figure
    assert mixed.sums.read().kl != clean.sums.read().kl
    assert both.sums.read().clusters_used != clean.sums.read().clusters_used


@pytest.mark.slow
def test_layer_drop_comes_at_its_rate_and_for_all_micro_batches_alike():
    setup = Setup()
    setup.settings = replace(setup.settings, layer_drop=0.3)
    layers = setup.network.encoder.encoder.layers
    calls = [0] * len(layers)
    for index, layer in enumerate(layers):
        layer.attention.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    for step in range(100):
        setup.update([batch(CLIPS[0]), batch(CLIPS[0])], step=step)
    # 100 steps of two micro-batches: a layer runs in 70 steps on average, deviation 4.6; five
    # deviations allowed
    assert all(count % 2 == 0 and abs(count / 2 - 70) < 23 for count in calls)
    assert calls[0] != calls[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_an_update_that_is_not_finite_moves_nothing_and_names_its_clips(value):
    setup = Setup()
    before = setup.weights()
    update = setup.update([batch(CLIPS[0]), batch(CLIPS[1], sample(7, 0.5, value))])
    assert not update.finite
    assert "clip 7" in update.clips
    assert torch.equal(setup.weights(), before)
    assert setup.update([batch(*CLIPS)]).finite
    assert torch.isfinite(setup.weights()).all()
    assert math.isfinite(setup.sums.read().loss)
    assert math.isfinite(setup.sums.read().clusters_used)


def test_gradients_are_clipped_to_the_norm():
    free, clipped = Setup("train.grad_clip_norm=1e9"), Setup("train.grad_clip_norm=0.001")
    norm = free.update([batch(*CLIPS)]).gradient_norm
    assert clipped.update([batch(*CLIPS)]).gradient_norm == pytest.approx(norm, rel=1e-4)
    assert free.gradient().norm().item() == pytest.approx(norm, rel=1e-4)
    assert clipped.gradient().norm().item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.slow
def test_a_window_without_a_readable_clip_changes_nothing():
    setup = Setup()
    before = setup.weights()
    empty = collate([(None, [Failure("a", "broken")])])
    assert empty.num_samples == ()
    for window in ([], [empty], [empty, empty]):
        update = setup.update(window)
        assert update.finite
        assert not update.made
        assert torch.equal(setup.weights(), before)
    both, readable = Setup(), Setup()  # beside others it changes nothing either
    both.update([batch(*CLIPS[:2]), empty])
    readable.update([batch(*CLIPS[:2])])
    assert torch.equal(both.weights(), readable.weights())
    assert not torch.equal(both.weights(), before)


@pytest.mark.slow
def test_training_on_a_few_clips_learns_them():
    setup = Setup()
    losses = []
    for step in range(60):
        setup.update([batch(*CLIPS)], step=step)
        losses.append(setup.sums.read().loss)
        setup.sums.reset()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_weight_decay_acts_on_matrices_only():
    setup = Setup()
    decayed, free = build_optimizer(setup.network, lr=1.0, weight_decay=0.1, betas=(0.9, 0.9)).param_groups
    names = {id(parameter): name for name, parameter in setup.network.named_parameters()}
    in_decay = {names[id(parameter)] for parameter in decayed["params"]}
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    linear = {f"{name}.weight" for name, part in setup.network.named_modules() if isinstance(part, torch.nn.Linear)}
    assert "encoder.encoder.layers.0.attention.k_proj.weight" in linear
    assert linear <= in_decay
    assert all(name.endswith((".weight", "original1")) for name in in_decay)
    assert "predictor.positions" not in in_decay
    assert "encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original0" not in in_decay
    assert not any("norm" in name for name in in_decay)
    assert len(in_decay) + len(free["params"]) == len(names)


@pytest.mark.slow
def test_lower_layers_train_at_lower_rates():
    """Two layers at a decay of a half: predictor, head and the top layer at the whole rate, the
    layer below at a half, what lies below that at a quarter; AdamW's first step moves every weight
    by its rate."""
    setup = Setup()
    setup.set_up(lr=0.0, weight_decay=0.1, layer_decay=0.5)
    setup.learner.set_rate(1e-3)
    optimizer = setup.learner.optimizer
    before = {name: parameter.detach().clone() for name, parameter in setup.network.named_parameters()}
    for parameter in setup.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = {name: (before[name] - own.detach()).mean().item() for name, own in setup.network.named_parameters()}
    lowest = "encoder.feature_projection.projection.weight"
    for name, share in (("head.layers.0.weight", 1), ("encoder.encoder.layers.1.attention.k_proj.weight", 1),
                        ("encoder.encoder.layers.0.attention.k_proj.weight", 0.5), (lowest, 0.25)):  # fmt: skip
        assert moved[name] == pytest.approx(share * 1e-3, rel=1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


def test_targets_of_an_update_know_who_speaks():
    """The same clip of two speakers of whom one is louder: only the keys in the batch can make its
    targets differ."""
    setup = Setup()
    space = MixtureSpace(SpaceSettings("speaker"), 39, speakers=[5, 7])
    frames = torch.randn(400, 39)
    space.measure_speakers(torch.cat([frames, 30 + 9 * frames]), torch.arange(2).repeat_interleave(400), ALONE)
    targets = MFCCTargets(setup.targets.gmm, SPEECH, space)
    batch = collate([(sample(0, 1.0)._replace(speaker=speaker), []) for speaker in (5, 7)])
    posteriors = plain_posteriors(targets, batch)(torch.arange(98))
    assert not torch.allclose(posteriors[:49], posteriors[49:], atol=1e-3)
    frames = choose_frames(batch, mask_key=0, settings=setup.settings)
    asked = torch.cat([frames.masked_N, frames.visible_N])
    assert torch.allclose(observed(targets, batch, frames, 0)(asked), posteriors[asked], atol=1e-6)


@pytest.mark.slow
def test_frozen_layers_keep_their_weights_and_the_others_move():
    setup = Setup()
    setup.network.encoder.freeze(1)
    setup.set_up(weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in setup.network.named_parameters()}
    assert setup.update([collate([(sample(0, 1.0), [])])]).made
    still = {name for name, own in setup.network.named_parameters() if torch.equal(own, before[name])}
    below = ("encoder.feature", "encoder.encoder.pos_conv", "encoder.encoder.layer_norm", "encoder.encoder.layers.0.")
    assert still == {name for name in before if name.startswith(below)}


@pytest.mark.slow
def test_a_waveform_frontend_learns_the_spectrum_of_its_frames():
    """Whatever level a clip has, guessing its mean leaves an error of 1 for each frame; 60 updates
    on one clip leave less than half. Afterwards the same model trains without it."""
    setup = Setup("train.spectral_warmup=0.5")
    batch = [collate([(sample(0, 1.0), []), (sample(1, 2.0), [])])]
    assert [stage.name for stage in plan(setup.config, 10).stages] == ["phase 1 with spectrum", "phase 1"]

    @torch.no_grad()
    def error():
        output = setup.network.encoder(batch[0].clean_BS, torch.tensor(batch[0].num_samples))
        frames = output.real_BT.sum()
        return float(
            setup.network.spectrum(
                output.frames_BTD, batch[0].clean_BS, torch.tensor(batch[0].num_samples), output.real_BT
            )
            / frames
        )

    before = error()
    assert before > 0.9
    for step in range(60):
        assert setup.update(batch, step % 50).made
    assert error() < 0.5 * before
    setup.learner.zero_grad()
    mask = torch.zeros(2, 99, dtype=torch.bool)
    setup.network(
        batch[0].clean_BS, torch.tensor(batch[0].num_samples), mask, torch.tensor([3]), torch.tensor([5])
    ).masked_NK.sum().backward()
    assert not setup.network.spectrum.output.weight.grad.any()  # in the graph, for those who wait for every gradient


@pytest.mark.parametrize("frontend", ["waveform", "logmel"])
def test_a_step_at_another_geometry_counts_the_frames_of_that_geometry(frontend):
    """8 kHz and frames of 25 ms every 10 ms: masks, targets, loss and mel spectrum all follow."""
    geometry = FrameGeometry(sample_rate=8000, kernels=(10, 8, 5), strides=(5, 4, 4))
    assert (geometry.receptive_field_samples, geometry.hop_samples) == (125, 80)
    setup = Setup(f"model.frontend={frontend}", "train.spectral_warmup=0.5" if frontend == "waveform" else "seed=0")
    shape = setup.network.shape
    setup.network = SJEPA(replace(shape, encoder=replace(shape.encoder, geometry=geometry), max_frames=400))
    setup.targets = MFCCTargets(setup.targets.gmm, geometry)
    setup.settings = replace(setup.settings, geometry=geometry)
    setup.set_up()
    before = setup.weights()
    assert setup.update([batch(*CLIPS[:2])]).made
    assert not torch.equal(setup.weights(), before)
    frames = [(len(clip.clean) - 125) // 80 + 1 for clip in CLIPS[:2]]
    assert setup.sums.read().frames == sum(math.floor(0.65 * n) for n in frames)
    assert ModelShape.from_dict(setup.network.shape.to_dict()).encoder.geometry == geometry
