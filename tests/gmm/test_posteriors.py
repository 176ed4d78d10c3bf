"""Against scikit-learn in float64, silence included."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.features.mfcc import MFCC
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.statistics import SufficientStatistics
from tests.support.audio import tone


def random_mixture(components=7, features=5, seed=0):
    rng = np.random.default_rng(seed)
    reference = GaussianMixture(components, covariance_type="diag", reg_covar=0.0)
    reference.weights_ = rng.dirichlet(np.ones(components))
    reference.means_ = rng.normal(0, 3, (components, features)) + 50
    reference.covariances_ = rng.uniform(0.1, 4, (components, features))
    reference.precisions_cholesky_ = 1 / np.sqrt(reference.covariances_)
    ours = DiagonalGMM(components, features)
    ours.set_parameters(*(torch.from_numpy(v) for v in (reference.weights_, reference.means_, reference.covariances_)))
    return reference, ours


def test_posteriors_equal_sklearn():
    reference, ours = random_mixture()
    frames = np.random.default_rng(1).normal(50, 4, (500, 5))
    result = ours.posteriors(torch.from_numpy(frames).float())
    assert np.abs(result.responsibilities_NK.numpy() - reference.predict_proba(frames)).max() < 1e-4
    assert np.abs(result.log_likelihood_N.numpy() - reference.score_samples(frames)).max() < 1e-3
    assert torch.allclose(result.responsibilities_NK.sum(1), torch.ones(500), atol=1e-5)


def test_rows_are_independent_of_chunking(monkeypatch):
    _, ours = random_mixture()
    frames = torch.randn(100, 5) + 50
    whole = ours.posteriors(frames).responsibilities_NK
    monkeypatch.setattr("sjepa.gmm.diagonal._CHUNK_ELEMENTS", 21)
    assert torch.allclose(ours.posteriors(frames).responsibilities_NK, whole, atol=1e-6)


def test_one_em_step_equals_sklearn():
    reference, ours = random_mixture()
    frames = np.random.default_rng(2).normal(50, 4, (800, 5))
    _, log_responsibilities = reference._e_step(frames)
    reference._m_step(frames, log_responsibilities)
    statistics = SufficientStatistics(7, torch.full((5,), 50.0))
    for chunk in torch.from_numpy(frames).float().split(150):
        statistics.add(chunk, ours.posteriors(chunk))
    weights, means, variances, alive = statistics.maximise(ours)
    assert alive.all()
    assert np.abs(weights.numpy() - reference.weights_).max() < 1e-5
    assert np.abs(means.numpy() - reference.means_).max() < 1e-3
    assert np.abs(variances.numpy() / reference.covariances_ - 1).max() < 1e-3


def test_a_component_without_mass_does_not_move():
    _, ours = random_mixture()
    statistics = SufficientStatistics(7, torch.zeros(5))
    shares = torch.zeros(4, 7)
    shares[:, 0] = 1.0
    statistics.add(torch.randn(4, 5), ours.posteriors(torch.randn(4, 5))._replace(responsibilities_NK=shares))
    parameters = statistics.maximise(ours)
    assert parameters.alive_K.tolist() == [True] + [False] * 6
    assert torch.equal(parameters.means_KD[1:], ours.means[1:])
    assert torch.equal(parameters.variances_KD[1:], ours.variances[1:])


def test_float32_posteriors_hold_on_digital_silence():
    """Frames of silence are all alike and far from the rest: where an expanded square loses most
    figures."""
    from sjepa.gmm.fit import FitSettings, fit_gmm

    rng = np.random.default_rng(0)
    speech = tone(8.0)[:, 0] * np.abs(np.sin(np.arange(128000) / 4000)) + rng.normal(0, 0.003, 128000)
    waveform = torch.from_numpy(np.concatenate([np.zeros(32000), speech]).astype(np.float32))[None]
    features = MFCC(SPEECH)(waveform, torch.tensor([waveform.shape[1]]))[0]
    gmm = fit_gmm(features, FitSettings(20, 0)).gmm
    x, weights, means, variances = (t.double() for t in (features, gmm.weights, gmm.means, gmm.variances))
    joint = weights.log() - 0.5 * (torch.log(2 * torch.pi * variances) + (x[:, None] - means) ** 2 / variances).sum(2)
    exact = joint.softmax(1)
    assert (gmm.posteriors(features).responsibilities_NK - exact).abs().max() < 2e-3


def test_other_features_are_refused():
    with pytest.raises(ValueError, match="6 features where the GMM has 5"):
        random_mixture()[1].posteriors(torch.zeros(3, 6))


def test_a_saved_mixture_comes_back(tmp_path):
    _, ours = random_mixture()
    ours.features = "mfcc39"
    ours.save(tmp_path / "gmm.pt")
    back = DiagonalGMM.load(tmp_path / "gmm.pt")
    assert back.features == "mfcc39"
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), back.buffers(), strict=True))


def test_files_that_hold_no_mixture_are_refused(tmp_path):
    path = tmp_path / "gmm.pt"
    with pytest.raises(UserError, match="no such GMM file"):
        DiagonalGMM.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a fitted GMM"):
        DiagonalGMM.load(path)
    _, ours = random_mixture()
    ours.variances[0, 0] = -1
    ours.save(path)
    with pytest.raises(UserError, match="that no GMM can have"):
        DiagonalGMM.load(path)
