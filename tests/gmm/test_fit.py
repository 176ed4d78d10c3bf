from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from sjepa.core.errors import SharedError
from sjepa.core.ranks import ALONE
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.fit import FitSettings, fit_gmm
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.s_jepa.fitting import MixtureFitter
from tests.support.processes import in_processes


def clusters(count=6, per_cluster=400, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 8, (count, 4))
    spread = rng.uniform(0.3, 1.5, (count, 4))
    samples = centres[:, None] + spread[:, None] * rng.normal(size=(count, per_cluster, 4))
    return torch.from_numpy(samples.reshape(-1, 4)).float()[torch.randperm(count * per_cluster)], centres


def test_well_separated_clusters_are_found():
    sample, centres = clusters()
    gmm = fit_gmm(sample, FitSettings(6, 0, em_iters=30)).gmm
    distance = np.linalg.norm(gmm.means.numpy()[:, None] - centres[None], axis=2)
    assert distance.min(axis=0).max() < 0.3
    assert torch.allclose(gmm.weights, torch.full((6,), 1 / 6), atol=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_log_likelihood_never_falls(seed):
    sample = torch.from_numpy(np.random.default_rng(seed).standard_t(4, (3000, 10))).float()
    fit = fit_gmm(sample, FitSettings(12, seed))
    assert len(fit.log_likelihoods) == 21
    # float32 responsibilities: a step may lose what rounding loses
    assert (np.diff(fit.log_likelihoods) > -1e-5).all()


def test_em_reaches_sklearns_likelihood():
    """Same number of iterations from either one's own start: within 1 % of each other on data
    without clear clusters."""
    sample = torch.from_numpy(np.random.default_rng(3).standard_t(4, (4000, 10))).float()
    ours = fit_gmm(sample, FitSettings(12, 0)).log_likelihoods[-1]
    reference = GaussianMixture(12, covariance_type="diag", max_iter=20, tol=0.0, random_state=0).fit(sample.numpy())
    assert ours > reference.score(sample.numpy()) - 0.01 * abs(ours)


def test_a_fit_depends_on_the_seed_alone():
    sample, _ = clusters()
    first, again, other = (fit_gmm(sample, FitSettings(6, seed)).gmm for seed in (1, 1, 2))
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)


def test_more_components_than_distinct_frames_still_gives_a_mixture():
    sample = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(50, 1)
    gmm = fit_gmm(sample, FitSettings(5, 0)).gmm
    assert torch.isfinite(torch.cat([gmm.means.flatten(), gmm.variances.flatten(), gmm.weights])).all()
    assert (gmm.variances > 0).all()


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="3 frames are too few for 5 components"):
        fit_gmm(torch.zeros(3, 2), FitSettings(5, 0))


def fit_a_part(ranks, sample, draws):
    """Uneven parts, one process with nothing."""
    share = [slice(0, 700), slice(700, None), slice(0, 0)][ranks.rank]
    fit = fit_gmm(sample[share], FitSettings(20, 3, em_iters=10), draw_N=draws[share], ranks=ranks)
    return fit.gmm.state_dict(), fit.log_likelihoods


@pytest.mark.slow
def test_processes_with_a_part_each_fit_what_one_fits_to_all(tmp_path):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(3000, 5, generator=generator) + 4 * torch.randint(0, 6, (3000, 1), generator=generator)
    draws = torch.rand(3000, generator=generator, dtype=torch.float64)
    whole = fit_gmm(sample, FitSettings(20, 3, em_iters=10), draw_N=draws)
    for state, log_likelihoods in in_processes(3, tmp_path, fit_a_part, sample, draws):
        assert log_likelihoods == pytest.approx(whole.log_likelihoods, rel=1e-6)
        for name, value in whole.gmm.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_a_mixture_of_frames_that_are_not_usable_is_known_as_such(value):
    sample = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert fit_gmm(sample, FitSettings(4, 0, em_iters=2)).is_finite
    sample[3] = value
    assert not fit_gmm(sample, FitSettings(4, 0, em_iters=2)).is_finite


def test_training_stops_at_a_mixture_that_is_not_usable():
    sample = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    sample[3] = 1e25
    draw = torch.rand(500, dtype=torch.float64)
    frames = SimpleNamespace(
        seed=0, ranks=ALONE, device=torch.device("cpu"), gather=lambda *_: (sample, draw),
        draw=lambda *_: (None, SimpleNamespace(epoch=lambda _: [], num_rounds=0)),
    )  # fmt: skip
    report = SimpleNamespace(detail=lambda text: None, progress=lambda items, **_: items)
    fitter = MixtureFitter(frames, 500, 1, 1, report)
    gmm, space = DiagonalGMM(4, 8, features="mfcc39"), MixtureSpace(SpaceSettings(), 8)
    with pytest.raises(
        SharedError, match=r"the mixture over mfcc39 is not finite \(largest value of a frame: 1e\+25\)"
    ):
        fitter.fit(lambda batch: batch, gmm, space, pause=lambda: None)
