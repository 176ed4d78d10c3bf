"""What is done to frames before they are clustered. Oracle: scikit-learn's discriminant analysis."""

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sjepa.core.ranks import ALONE
from sjepa.gmm.fit import FitSettings, fit_gmm
from sjepa.gmm.space import MixtureSpace, SpaceSettings


def test_nothing_is_done_unless_asked_for():
    space, x = MixtureSpace(SpaceSettings(), 5), torch.randn(2, 7, 5)
    assert torch.equal(space.project(space.frames(x, torch.tensor([7, 4])).flatten(0, 1)), x.flatten(0, 1))


def test_a_clip_is_normalised_over_its_own_frames_whatever_the_batch():
    space = MixtureSpace(SpaceSettings("clip"), 4)
    clips = [3 * torch.randn(count, 4) + 5 for count in (30, 8, 2)]
    batch = torch.full((3, 30, 4), 99.0)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    found = space.frames(batch, torch.tensor([30, 8, 2]))
    for row, clip in zip(found, clips, strict=True):
        own = row[: len(clip)]
        assert torch.allclose(own, space.frames(clip[None], torch.tensor([len(clip)]))[0], atol=1e-5)
        assert own.mean(0).abs().max() < 1e-5
        assert (own.std(0, correction=0) - 1).abs().max() < 1e-4


def test_frames_are_normalised_by_all_that_their_speaker_says():
    """Speaker 7 says three clips, 9 one that is long enough, 8 too little to be known; 5 is not of
    the training set."""
    torch.manual_seed(0)
    space = MixtureSpace(SpaceSettings("speaker"), 3, speakers=[9, 7, 8])
    clips = {
        7: [2 * torch.randn(60, 3) + shift for shift in (1, 5, 9)],
        9: [torch.randn(150, 3) - 4],
        8: [torch.randn(99, 3)],
    }
    rows = torch.cat([clip for own in clips.values() for clip in own])
    speaker_N = torch.tensor([speaker for speaker, own in clips.items() for clip in own for _ in clip])
    assert space.measure_speakers(rows, space.speaker_number(speaker_N, len(rows)), ALONE) == 2
    batch = torch.cat([clips[7][0], clips[9][0][:60], clips[8][0][:60], clips[7][1]]).reshape(4, 60, 3)
    found = space.frames(batch, torch.full((4,), 60), torch.tensor([7, 9, 8, 5]))
    said = torch.cat(clips[7])
    assert torch.allclose(found[0], (clips[7][0] - said.mean(0)) / said.std(0, correction=0), atol=1e-4)
    assert torch.allclose(found[1], (batch[1] - clips[9][0].mean(0)) / clips[9][0].std(0, correction=0), atol=1e-4)
    by_itself = MixtureSpace(SpaceSettings("clip"), 3).frames(batch, torch.full((4,), 60))
    assert torch.equal(found[2:], by_itself[2:])
    assert torch.equal(space.frames(batch, torch.full((4,), 60)), by_itself)  # nobody says who speaks


def test_a_frame_that_does_not_vary_stays_finite():
    assert MixtureSpace(SpaceSettings("clip"), 4).frames(torch.full((1, 6, 4), 3.0), torch.tensor([6])).abs().max() == 0


def test_neighbours_are_spliced_and_repeated_at_a_clips_own_ends():
    space = MixtureSpace(SpaceSettings(context=2), 1)
    x = torch.arange(5.0)[None, :, None]
    found = space.frames(x, torch.tensor([4]))[0]
    assert found[:4].tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]
    assert torch.equal(space.centre_frame(found[:4]), x[0, :4])


def test_the_projection_is_linear_discriminant_analysis():
    """The same directions as scikit-learn's, and clusters with unit variance inside."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    label = rng.integers(0, 4, 4000)
    means = rng.normal(size=(4, 6)) * [3, 2, 1, 0, 0, 0]
    x = ((means[label] + rng.normal(size=(4000, 6))) @ mixing).astype(np.float32)
    space = MixtureSpace(SpaceSettings(dimensions=3), 6)
    share = torch.nn.functional.one_hot(torch.from_numpy(label), 4).float()
    space.fit_projection(torch.from_numpy(x), share, ALONE)
    ours = space.project(torch.from_numpy(x)).numpy()
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(x, label).transform(x)
    for index in range(3):  # ascending here, descending there
        correlation = np.corrcoef(ours[:, 2 - index], reference[:, index])[0, 1]
        assert abs(correlation) > 0.999
    inside = np.concatenate([ours[label == k] - ours[label == k].mean(0) for k in range(4)])
    assert np.abs(np.cov(inside.T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("bits", [0.5, 1.5])
def test_the_temperature_gives_targets_the_entropy_asked_for(bits):
    torch.manual_seed(0)
    x = torch.randn(8, 64)[torch.randint(0, 8, (3000,))] * 0.5 + torch.randn(3000, 64)
    gmm = fit_gmm(x, FitSettings(8, 0)).gmm
    space = MixtureSpace(SpaceSettings(entropy_bits=bits), 64)
    assert _bits(gmm.posteriors(x).responsibilities_NK) < 0.2  # sure of everything without
    space.fit_temperature(gmm, x, ALONE)
    assert _bits(space.posteriors(gmm, x)) == pytest.approx(bits, abs=0.01)
    assert torch.allclose(space.posteriors(gmm, x).sum(1), torch.ones(3000), atol=1e-5)


def test_a_mixture_that_is_soft_already_is_left_alone():
    x = torch.randn(2000, 2)
    gmm = fit_gmm(x, FitSettings(8, 0)).gmm
    space = MixtureSpace(SpaceSettings(entropy_bits=0.01), 2)
    space.fit_temperature(gmm, x, ALONE)
    assert float(space.temperature) == pytest.approx(1.0, abs=1e-4)


def _bits(posteriors):
    return float(torch.special.entr(posteriors).sum(1).mean()) / math.log(2)
