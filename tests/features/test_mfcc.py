import librosa
import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.features.effective_rank import effective_rank
from sjepa.features.mfcc import MFCC
from tests.support.audio import waveforms


def librosa_mfcc(waveform):
    """The reference: librosa's own chain, with the parameters of method and docstring."""
    power = librosa.feature.melspectrogram(
        y=waveform, sr=16000, n_fft=400, hop_length=320, window="hann", center=False, power=2.0, n_mels=23, htk=True, norm=None
    )  # fmt: skip
    static = librosa.feature.mfcc(S=librosa.power_to_db(power, top_db=80), n_mfcc=13)
    delta = librosa.feature.delta(static, width=5, mode="nearest")
    return np.concatenate([static, delta, librosa.feature.delta(delta, width=5, mode="nearest")]).T


@pytest.mark.parametrize("name", waveforms())
def test_mfcc_equals_librosa(name):
    waveform = waveforms()[name]
    expected = librosa_mfcc(waveform)
    ours = MFCC(SPEECH)(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))[0].numpy()
    assert ours.shape == expected.shape
    span = np.ptp(expected, axis=0)
    # coefficients that do not move (deltas of two frames, silence) are compared on the scale of the
    # static ones
    assert np.all(np.abs(ours - expected).max(axis=0) <= 1e-4 * np.maximum(span, 1.0))


def test_padding_and_neighbours_change_nothing():
    short, long = waveforms()["chirp"], waveforms()["noise"] * 30
    batch = torch.zeros(2, 60000)
    batch[0, : len(short)] = torch.from_numpy(short)
    batch[0, len(short) :] = 0.9  # whatever lies beyond a clip's end
    batch[1, : len(long)] = torch.from_numpy(long)
    mfcc = MFCC(SPEECH)
    alone = mfcc(torch.from_numpy(short)[None], torch.tensor([len(short)]))[0]
    together = mfcc(batch, torch.tensor([len(short), len(long)]))[0, : len(alone)]
    assert torch.allclose(alone, together, atol=1e-4)


def test_mfcc_stays_in_float32_under_autocast():
    waveform = torch.from_numpy(waveforms()["noise"])[None]
    plain = MFCC(SPEECH)(waveform, torch.tensor([20000]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MFCC(SPEECH)(waveform, torch.tensor([20000])), plain)


def test_effective_rank_is_the_exponential_of_the_spectrums_entropy():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(400, 8)).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q  # centring must not change it
    assert effective_rank(basis @ torch.diag(torch.ones(8))) == pytest.approx(8, rel=1e-4)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0, 0, 0, 0, 0])
    share = values[:4] / 8
    expected = float(torch.exp(-(share * share.log()).sum()))
    assert effective_rank(basis @ torch.diag(values)) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_constant_features_is_one():
    assert effective_rank(torch.ones(50, 7)) == 1.0
