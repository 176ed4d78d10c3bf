"""Decorrelation of features before quantisation."""

import torch

from sjepa.tokenizer.codec.whitening import Whitening


def correlated(frames, width, rank=None):
    torch.manual_seed(0)
    return torch.randn(frames, rank or width) @ torch.randn(rank or width, width) + torch.arange(width)


def test_it_centres_and_decorrelates():
    features = correlated(4000, 12)
    whitening = Whitening(12)
    whitening.fit(features)
    white = whitening(features[None])[0]
    assert white.mean(0).abs().max() < 1e-3
    assert (torch.cov(white.T, correction=0) - torch.eye(12)).abs().max() < 1e-2
    assert torch.allclose(whitening.matrix_DD, whitening.matrix_DD.T, atol=1e-5)


def test_it_is_the_nearest_to_the_features():
    """ZCA: of all white features, those with the least mean squared change (Kessy et al. 2018)."""
    features = correlated(4000, 6)
    whitening = Whitening(6)
    whitening.fit(features)
    white, centred = whitening(features[None])[0], features - features.mean(0)
    best = (white - centred).square().mean()
    for seed in range(5):
        turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))[0]
        assert (white @ turn - centred).square().mean() > best


def test_unused_directions_and_few_frames_stay_finite():
    for frames, width, rank in ((1000, 12, 5), (3, 12, None), (1, 4, None)):
        whitening = Whitening(width)
        features = correlated(frames, width, rank)
        whitening.fit(features)
        assert whitening(features[None]).abs().max() < 100 * frames**0.5
        assert whitening(features[None] + 1).isfinite().all()


def test_as_created_it_changes_nothing():
    features = torch.randn(2, 7, 5)
    assert torch.equal(Whitening(5)(features), features)
    assert Whitening(5)(features.bfloat16()).dtype == torch.float32


def test_dimensions_use_their_levels():
    """Three of five correlated dimensions say nearly the same: their tokens are few, until they are
    whitened."""
    from sjepa.tokenizer.codec.fsq import FSQ
    from sjepa.tokenizer.codec.usage import TokenUsage

    source = torch.randn(20_000, 3)
    features = torch.cat([source, source + 0.05 * torch.randn(20_000, 3)], 1)
    whitening, fsq, shares = Whitening(6), FSQ(6, (4,), 6), []
    whitening.fit(features)
    for given in (features, whitening(features[None])[0]):
        usage = TokenUsage(fsq.vocabulary)
        usage.add(fsq.pack(fsq.codes(given)).numpy())
        shares.append(usage.groups()[0].perplexity / 4**6)
    assert shares[0] < 0.1
    assert shares[1] > 0.6
