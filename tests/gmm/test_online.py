"""The online mixture against plain loops in float64, and what it is for: following features that
drift."""

import numpy as np
import pytest
import torch

from sjepa.gmm.diagonal import DiagonalGMM, mixture_moments
from sjepa.gmm.fit import FitSettings, fit_gmm
from sjepa.gmm.online_update import MOST_CANDIDATES, Candidates, blend, reseed
from sjepa.gmm.statistics import SufficientStatistics


def mixture(components=4, features=3, seed=0):
    torch.manual_seed(seed)
    gmm = DiagonalGMM(components, features)
    gmm.set_parameters(
        torch.rand(components) + 0.1, 3 * torch.randn(components, features), torch.rand(components, features) + 0.2
    )
    return gmm


def observed(gmm, *parts):
    statistics = SufficientStatistics(gmm.num_components, mixture_moments(gmm.weights, gmm.means, gmm.variances)[0])
    for part in parts:
        statistics.add(part, gmm.posteriors(part))
    return statistics


def reference(gmm, frames, decay):
    """One update, component by component and frame by frame: the old mixture weighs `decay`, the
    frames 1 − decay."""
    weights, means, variances = (value.double().numpy() for value in (gmm.weights, gmm.means, gmm.variances))
    components, features = means.shape
    frames = frames.double().numpy()
    mass, sums, squares = np.zeros(components), np.zeros_like(means), np.zeros_like(means)
    for frame in frames:
        density = np.zeros(components)
        for k in range(components):
            density[k] = weights[k]
            for d in range(features):
                variance = variances[k, d]
                density[k] *= np.exp(-((frame[d] - means[k, d]) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        for k in range(components):
            share = density[k] / density.sum()
            mass[k] += share
            for d in range(features):
                sums[k, d] += share * frame[d]
                squares[k, d] += share * frame[d] ** 2
    new_weights, new_means, new_variances = np.zeros(components), np.zeros_like(means), np.zeros_like(means)
    for k in range(components):
        old, new = decay * weights[k], (1 - decay) * mass[k] / len(frames)
        new_weights[k] = old + new
        for d in range(features):
            first = (old * means[k, d] + (1 - decay) * sums[k, d] / len(frames)) / new_weights[k]
            second = (
                old * (variances[k, d] + means[k, d] ** 2) + (1 - decay) * squares[k, d] / len(frames)
            ) / new_weights[k]
            new_means[k, d], new_variances[k, d] = first, second - first**2
    return new_weights, new_means, new_variances


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.99])
def test_one_update_equals_plain_loops(decay):
    gmm, frames = mixture(), 3 * torch.randn(50, 3)
    expected = reference(gmm, frames, decay)
    blend(gmm, observed(gmm, frames[:20], frames[20:]), decay)
    for got, wanted in zip((gmm.weights, gmm.means, gmm.variances), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-4, atol=2e-5)


def test_with_many_frames_it_is_the_papers_blend_of_parameters():
    """θ ← α θ + (1 − α) θ̂ where every component has its expected mass; they differ by what mass
    differs (here 5 %)."""
    gmm = mixture(components=3)
    torch.manual_seed(1)
    component = torch.multinomial(gmm.weights, 20_000, replacement=True)
    frames = gmm.means[component] + gmm.variances[component].sqrt() * torch.randn(20_000, 3) + 0.05
    statistics, before = observed(gmm, frames), [value.clone() for value in (gmm.weights, gmm.means, gmm.variances)]
    estimate = statistics.maximise(gmm)[:3]
    blend(gmm, statistics, 0.9)
    for now, old, new in zip((gmm.weights, gmm.means, gmm.variances), before, estimate, strict=True):
        step, papers = now - old, 0.1 * (new - old)
        assert (step - papers).norm() < 0.1 * papers.norm() + 1e-3


def test_no_mass_no_movement():
    gmm = mixture(components=3)
    gmm.means[2] = 60.0
    before = [value.clone() for value in (gmm.weights, gmm.means, gmm.variances)]
    blend(gmm, observed(gmm, torch.randn(40, 3)), 0.9)
    assert torch.equal(gmm.means[2], before[1][2])
    assert torch.allclose(gmm.variances[2], before[2][2], rtol=1e-6)
    assert gmm.weights[2].item() == pytest.approx(0.9 * before[0][2].item(), rel=1e-5)
    assert torch.isfinite(torch.cat([gmm.weights, gmm.means.flatten(), gmm.variances.flatten()])).all()


def test_a_step_without_frames_moves_nothing():
    gmm = mixture()
    before = [value.clone() for value in (gmm.means, gmm.variances, gmm.weights)]
    blend(gmm, observed(gmm, torch.zeros(0, 3)), 0.9)
    assert torch.equal(gmm.means, before[0])
    assert torch.allclose(gmm.variances, before[1], rtol=1e-6)
    assert torch.allclose(gmm.weights, before[2], rtol=1e-6)


@pytest.mark.slow
def test_few_frames_per_component_do_not_degenerate_the_mixture():
    """Steps of 40 frames for 20 components: 2 frames each, whose own variance is half of the true
    one or less. Blending that in as it stands loses half of the variance; weighing by mass keeps
    it. Tolerance: the variance of a component is estimated from about 100 effective frames (40/20
    per step · 1/(1 − 0.98)), deviation 14 %."""
    torch.manual_seed(0)
    centres = 12 * torch.randn(20, 4)
    gmm = DiagonalGMM(20, 4)
    gmm.set_parameters(torch.ones(20), centres, torch.ones(20, 4))
    for _ in range(600):
        frames = centres[torch.randint(20, (40,))] + torch.randn(40, 4)
        blend(gmm, observed(gmm, frames), 0.98)
    assert gmm.variances.mean().item() == pytest.approx(1.0, abs=0.1)
    assert (gmm.means - centres).norm(dim=1).max() < 1.0
    assert gmm.weights.min() > 0.02


@pytest.mark.slow
def test_clusters_that_drift_are_followed_and_a_frozen_mixture_loses_them():
    torch.manual_seed(0)
    centres = 4 * torch.randn(8, 6)
    velocity = 0.02 * torch.randn(8, 6)

    def frames(step, count):
        chosen = torch.randint(8, (count,))
        return (centres + step * velocity)[chosen] + torch.randn(count, 6)

    frozen = fit_gmm(frames(0, 4000), FitSettings(8, 0)).gmm
    online = DiagonalGMM(8, 6)
    online.load_state_dict(frozen.state_dict())
    start = float(frozen.posteriors(frames(0, 2000)).log_likelihood_N.mean())
    for step in range(400):
        blend(online, observed(online, frames(step, 200)), 0.9)
    end = frames(400, 2000)
    # the mixture lags by 10 steps of drift, 0.2 deviations in each of 6 features: 0.12 nats, and
    # noise of its estimates
    assert float(online.posteriors(end).log_likelihood_N.mean()) == pytest.approx(start, abs=0.3)
    assert float(frozen.posteriors(end).log_likelihood_N.mean()) < start - 10


def test_the_update_does_not_depend_on_how_the_step_was_cut():
    frames = 3 * torch.randn(64, 3)
    whole, parts = mixture(), mixture()
    blend(whole, observed(whole, frames), 0.9)
    blend(parts, observed(parts, *frames.split(7)), 0.9)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dead_components_get_a_real_frame_a_typical_variance_and_weight():
    gmm = mixture(components=4)
    gmm.set_parameters(torch.tensor([0.5, 0.4949, 0.0050, 0.0001]), gmm.means, gmm.variances)
    live = gmm.variances[:2].clone()
    kept = gmm.means[:3].clone()
    frames = torch.randn(10, 3)
    draws = torch.rand(10)
    # only the last is under 1 % of 1/4
    assert int(reseed(gmm, Candidates.of(draws, frames))) == 1
    assert torch.equal(gmm.means[3], frames[draws.argmin()])
    assert torch.equal(gmm.means[:3], kept)
    assert torch.allclose(gmm.variances[3], live.mean(0), rtol=0.02)
    assert gmm.weights[3] == pytest.approx(0.25 / 1.2499, rel=1e-3)
    assert float(gmm.weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert int(reseed(gmm, Candidates.of(draws, frames))) == 0


def test_several_dead_components_get_different_frames_and_too_many_wait():
    gmm = DiagonalGMM(100, 2)
    weights = torch.full((100,), 1e-6)
    weights[0] = 1.0
    gmm.set_parameters(weights, torch.zeros(100, 2), torch.ones(100, 2))
    frames = torch.arange(200.0).reshape(100, 2) + 1
    assert int(reseed(gmm, Candidates.of(torch.rand(100), frames))) == MOST_CANDIDATES
    moved = gmm.means[gmm.means.norm(dim=1) > 0]
    assert len(moved) == MOST_CANDIDATES == len(torch.unique(moved, dim=0))
    few = DiagonalGMM(100, 2)
    few.set_parameters(weights, torch.zeros(100, 2), torch.ones(100, 2))
    assert int(reseed(few, Candidates.of(torch.rand(3), frames[:3]))) == 3


def test_candidates_do_not_depend_on_the_split():
    draws, frames = torch.rand(500), torch.randn(500, 2)
    whole = Candidates.of(draws, frames)
    merged = Candidates.of(draws[:90], frames[:90]).merge(Candidates.of(draws[90:], frames[90:]))
    assert torch.equal(whole.frames_RD, merged.frames_RD)
    assert len(whole.draw_R) == MOST_CANDIDATES
    assert whole.draw_R.max() <= draws.sort().values[MOST_CANDIDATES - 1]


def test_statistics_keep_their_precision_inside_autocast():
    gmm, frames = mixture(), 3 * torch.randn(500, 3)
    posteriors = gmm.posteriors(frames)
    plain, inside = (SufficientStatistics(4, torch.zeros(3)) for _ in range(2))
    plain.add(frames, posteriors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.add(frames, posteriors)
    assert torch.equal(plain.squares_KD, inside.squares_KD)
    assert inside.mass_K.sum().item() == pytest.approx(500, abs=1e-3)
