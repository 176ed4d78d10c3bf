import jiwer
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sjepa.evaluation.probes import Transcribed, linear_ctc, logistic_regression


def test_logistic_regression_reaches_scikit_learns_optimum():
    torch.manual_seed(0)
    centres = torch.randn(4, 6)
    label = torch.randint(4, (600,))
    features = 5 + 3 * (centres[label] + torch.randn(600, 6))
    ours = logistic_regression(features[:400], label[:400], features[400:], num_classes=4)
    scale = StandardScaler().fit(features[:400].numpy())
    model = LogisticRegression(C=1.0, max_iter=2000).fit(scale.transform(features[:400].numpy()), label[:400].numpy())
    theirs = model.predict(scale.transform(features[400:].numpy()))
    assert np.mean(ours.numpy() == theirs) >= 0.99  # ties of two classes may fall either way
    assert (ours == label[400:]).float().mean() > 0.5


def test_a_linear_ctc_head_finds_symbols_that_features_show():
    """Each symbol has a direction of its own for five frames, silence between; one in fifty frames is noise."""
    rng = np.random.default_rng(0)

    def clip():
        symbols = rng.integers(1, 5, size=6)
        frames = [np.zeros(5)]
        for symbol in symbols:
            frames += [np.eye(5)[symbol]] * 5 + [np.zeros(5)] * 2
        return Transcribed(
            torch.tensor(np.array(frames) + 0.1 * rng.normal(size=(len(frames), 5))).float(), tuple(symbols.tolist())
        )

    train, test = [clip() for _ in range(60)], [clip() for _ in range(20)]
    found = linear_ctc(train, [one.features_TD for one in test], num_symbols=4, seed=0, lr=0.05, epochs=60)
    said, heard = (
        [" ".join(map(str, symbols)) for symbols in clips] for clips in ((one.symbols for one in test), found)
    )
    assert jiwer.wer(said, heard) < 0.2  # a head without memory sees some symbols twice in noise
    again = linear_ctc(train, [one.features_TD for one in test], num_symbols=4, seed=0, lr=0.05, epochs=60)
    assert found == again


def test_transcripts_longer_than_their_clip_are_left_out():
    fine = Transcribed(torch.randn(9, 3), (1, 2))
    with pytest.raises(ValueError, match="no clip"):
        linear_ctc([Transcribed(torch.randn(2, 3), (1, 1))], [torch.randn(4, 3)], num_symbols=2, seed=0, epochs=1)
    linear_ctc([fine, Transcribed(torch.randn(2, 3), (1, 1))], [torch.randn(4, 3)], num_symbols=2, seed=0, epochs=1)
