"""One update of stage 1: what it depends on, and what it must not depend on."""

from functools import partial

import pytest
import torch

from sjepa.config.load import load_config
from sjepa.core.distributed import Engine, Processes
from sjepa.core.frames import padded_geometry
from sjepa.core.learner import Learner
from sjepa.core.ranks import ALONE
from sjepa.tokenizer.method import context_offsets, network_shape, step_settings
from sjepa.tokenizer.metrics import ErrorSums
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.schema import SCHEMA
from sjepa.tokenizer.sizes import RATES, hyperparameters
from sjepa.tokenizer.step import jepa_update
from sjepa.tokenizer.targets import TokenTargets
from sjepa.training.optimizer import build_adamw
from tests.support.processes import as_torchrun_does
from tests.support.steps import CLIPS, batch, sample

SMALL = ["model.size=smoke", "model.overrides={dropout: 0.0}"]


class Setup:
    """A very small network with its target; `update` makes one step."""

    def __init__(self, *overrides, processes=1, lr=1e-3):
        config = load_config(SCHEMA, None, [*SMALL, *overrides])
        torch.manual_seed(0)
        self.engine = Engine(device="cpu", precision="fp32", processes=Processes(processes))
        self.network = TokenJEPA(network_shape(config))
        self.targets = TokenTargets(self.network.encoder)
        build = partial(build_adamw, lr=lr, weight_decay=0.0, betas=(0.8, 0.99))
        self.learner = Learner(self.engine, self.network, build)
        self.learner.model.train()
        self.settings, self.sums = step_settings(config), ErrorSums(self.engine.device)

    def update(self, window, number=0):
        return jepa_update(self.learner, self.targets, window, number=number, settings=self.settings, sums=self.sums)

    def gradient(self):
        return torch.cat([parameter.grad.flatten() for parameter in self.network.parameters()])


@pytest.mark.parametrize("normalise", ["update", "clip", "none"])
def test_accumulation_does_not_change_the_gradient(normalise):
    """Targets are normalised over all frames of the update, the loss is one mean over its masked
    frames."""
    whole, parts, singles = (Setup(f"target.normalise={normalise}") for _ in range(3))
    whole.update([batch(*CLIPS)])
    parts.update([batch(CLIPS[0]), batch(*CLIPS[1:])])
    singles.update([batch(clip) for clip in CLIPS])
    reference = whole.gradient()
    assert reference.norm() > 0
    for other in (parts, singles):
        assert (other.gradient() - reference).norm() < 1e-4 * reference.norm()
        assert other.sums.read().error == pytest.approx(whole.sums.read().error, rel=1e-5)


def _one_update(processes):
    setup = Setup(processes=processes)
    shares = [CLIPS[index::processes] for index in range(processes)]
    setup.update([batch(*shares[setup.engine.ranks.rank])])
    return setup.gradient().tolist(), setup.targets.mean_D.tolist()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    ((gradient, mean),) = as_torchrun_does(1, tmp_path / "one", _one_update, 1)
    expected = torch.tensor(gradient)
    for own, own_mean in as_torchrun_does(2, tmp_path / "two", _one_update, 2):
        assert (torch.tensor(own) - expected).norm() < 1e-4 * expected.norm()
        assert own_mean == pytest.approx(mean, abs=1e-5)


def test_the_targets_of_an_update_have_zero_mean_and_unit_deviation():
    setup = Setup()
    setup.update([batch(*CLIPS[:2]), batch(*CLIPS[2:])])
    rows = []
    for clip in CLIPS:
        waveform = torch.from_numpy(clip.clean)[None]
        rows.append(setup.targets.normalised(setup.targets.features(waveform, None).features_BTD[0]))
    normal = torch.cat(rows)
    assert normal.mean(0).abs().max() < 1e-4
    assert (normal.square().mean(0) - 1).abs().max() < 1e-3


def test_moments_survive_a_large_offset_and_no_frames():
    targets = Setup().targets
    width = len(targets.mean_D)
    torch.manual_seed(0)
    rows = 1000 + torch.randn(500, width)
    for _ in range(2):
        targets.measure([rows], ALONE)
    assert torch.allclose(targets.deviation_D, rows.std(0, correction=0), rtol=1e-4)
    before = targets.mean_D.clone()
    targets.measure([], ALONE)
    assert torch.equal(targets.mean_D, before)


def test_masks_are_drawn_anew_in_every_update():
    setup = Setup(lr=0.0)
    setup.update([batch(*CLIPS)], 0)
    first = setup.gradient()
    setup.update([batch(*CLIPS)], 1)
    assert (setup.gradient() - first).norm() > 1e-2 * first.norm()
    setup.update([batch(*CLIPS)], 0)
    assert (setup.gradient() - first).norm() < 1e-3 * first.norm()


def test_the_target_hears_clean_audio_and_the_encoder_what_it_is_given():
    quiet = [clip._replace(heard=0.1 * clip.heard[::-1].copy()) for clip in CLIPS]
    plain, heard, clean = Setup(), Setup(), Setup()
    plain.update([batch(*CLIPS)])
    heard.update([batch(*quiet)])
    clean.update([batch(*(clip._replace(clean=clip.clean[::-1].copy()) for clip in CLIPS))])
    assert torch.equal(plain.targets.mean_D, heard.targets.mean_D)
    assert not torch.equal(plain.targets.mean_D, clean.targets.mean_D)
    assert not torch.allclose(plain.gradient(), heard.gradient())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_moves_nothing_and_names_its_clips(value):
    setup = Setup()
    before = [parameter.detach().clone() for parameter in setup.network.parameters()]
    with torch.no_grad():
        setup.targets.encoder.average.projection.bias[0] = value
    update = setup.update([batch(*CLIPS)])
    assert not update.finite
    assert update.clips == tuple(clip.name for clip in CLIPS)
    assert all(torch.equal(a, b) for a, b in zip(before, setup.network.parameters(), strict=True))


def test_a_window_without_a_clip_changes_nothing():
    setup = Setup()
    update = setup.update([batch()])
    assert update.finite
    assert not update.made


def test_prediction_of_masked_frames_is_learned():
    """60 updates on a few clips: below both baselines; the targets keep their deviation."""
    setup = Setup()
    clips = [sample(number, 1.0) for number in range(4)]
    for number in range(60):
        setup.sums.reset()
        assert setup.update([batch(*clips)], number % 4).made
        setup.targets.encoder.follow(setup.network.encoder, 0.99)
    metrics = setup.sums.read()
    assert metrics.error < min(metrics.interpolation, metrics.mean)
    assert metrics.deviation > 0.1


def test_masks_at_the_output_let_the_encoder_hear_everything():
    inside, outside = Setup(), Setup("mask.at=output")
    mask = torch.zeros(1, 50, dtype=torch.bool)
    mask[0, 10:20] = True
    waveform = torch.from_numpy(CLIPS[2].clean)[None, :16000]
    waveform = torch.cat([waveform, torch.zeros(1, 16000 - waveform.shape[1])], 1)
    for setup, leaks in ((inside, False), (outside, True)):
        heard = waveform.clone().requires_grad_()
        setup.network.eval()(
            heard, None, mask, torch.arange(10, 20), setup.settings.masked_at
        ).predicted_ND.square().sum().backward()
        assert bool(heard.grad[0, 3200:6400].any()) == leaks


def test_the_convolutions_learn_the_spectrum_of_visible_frames():
    """Guessing the mean leaves an error of 1 for each frame. Afterwards the head stays in the graph,
    with zero gradients."""
    setup, clips = Setup("train.spectral_warmup=0.5"), [sample(number, 1.01) for number in range(3)]

    @torch.no_grad()
    def error():
        waveform, nothing = batch(*clips).clean_BS, torch.zeros(3, 51, dtype=torch.bool)
        found = setup.network(waveform, None, nothing, torch.zeros(0, dtype=torch.int64), "input", spectral=True)
        return float(found.spectrum_error) / (3 * 51)

    before = error()
    assert before > 0.9
    for number in range(60):
        given = {"number": number % 5, "settings": setup.settings, "sums": setup.sums, "spectral": True}
        assert jepa_update(setup.learner, setup.targets, [batch(*clips)], **given).made
    assert error() < 0.6 * before
    setup.update([batch(*clips)])
    assert not setup.network.spectrum.output.weight.grad.any()


def test_masked_frames_are_no_part_of_the_spectral_loss():
    """A head that says 0 is wrong by the bands themselves."""
    setup, mask = Setup("train.spectral_warmup=0.5"), torch.zeros(3, 51, dtype=torch.bool)
    mask[:, :40] = True
    waveform = batch(*(sample(number, 1.02) for number in range(3))).clean_BS
    torch.nn.init.zeros_(setup.network.spectrum.output.weight)
    found = setup.network(waveform, None, mask, torch.arange(5), "input", spectral=True)
    bands = setup.network.spectrum.mel(waveform, torch.full((3,), 51 * 320))
    assert float(found.spectrum_error) == pytest.approx(float(bands.square().mean(-1)[:, 40:].sum()), rel=1e-4)


def test_the_features_give_the_spectrum_of_the_frames_around():
    """With a head that gives 0, the error is the power of the bands of the frames that are there."""
    setup = Setup("train.spectral_warmup=0.5", "train.spectral_context=0.08")
    head, waveform = setup.network.context, batch(*(sample(number, 1.02) for number in range(3))).clean_BS
    assert head.offsets == (-4, -2, -1, 0, 1, 2, 4)
    torch.nn.init.zeros_(head.output.weight)
    samples, mask = torch.tensor([51, 40, 30]) * 320, torch.zeros(3, 51, dtype=torch.bool)
    mask[0, 7:12] = True
    found = setup.network(waveform, samples, mask, torch.arange(7, 12), "input", spectral=True)
    setup.network.context = None
    alone = setup.network(waveform, samples, mask, torch.arange(7, 12), "input", spectral=True)
    bands, wanted = head.mel(waveform, samples).double().square().mean(-1), 0.0
    for clip, frames in enumerate((51, 40, 30)):
        for frame in range(frames):
            around = [frame + offset for offset in head.offsets if 0 <= frame + offset < frames]
            wanted += float(bands[clip, around].sum()) / 7 if not mask[clip, frame] else 0.0
    assert float(found.spectrum_error - alone.spectrum_error) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "offsets"), [("tiny", (-8, -4, -2, 0, 2, 4, 8)), ("speech", (-2, -1, 0, 1, 2)), ("seed", (0,))]
)
def test_the_context_is_in_seconds(size, offsets):
    values = hyperparameters(size, {})
    assert context_offsets(0.16, padded_geometry(RATES[size], values.hop)) == offsets
    assert context_offsets(0.0, padded_geometry(RATES[size], values.hop)) == ()


def test_skill_is_that_over_interpolation():
    sums, targets = ErrorSums(torch.device("cpu")), torch.randn(50, 8)
    sums.add(targets, 0.5 * targets, torch.zeros_like(targets), targets)
    assert sums.read().skill == pytest.approx(0.75)


def test_targets_that_are_not_finite_leave_no_trace():
    targets, rows = TokenTargets(Setup().network.encoder), torch.randn(100, 24)
    targets.measure([rows], ALONE)
    before = targets.mean_D.clone(), targets.deviation_D.clone()
    for bad in (torch.nan, torch.inf):
        targets.measure([torch.full_like(rows, bad)], ALONE)
        assert torch.equal(targets.mean_D, before[0])
        assert torch.equal(targets.deviation_D, before[1])
