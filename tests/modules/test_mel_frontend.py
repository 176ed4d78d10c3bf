"""Oracle: librosa's mel spectrogram."""

import librosa
import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.features.mel_frontend import MelFrontend
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from tests.support.audio import waveforms
from tests.support.encoders import assert_padding_changes_nothing, padded, waves

SHAPES = {
    kind: EncoderShape(
        num_layers=2, transformer=TransformerShape(32, 2, 64), position_kernel=8, position_groups=4, frontend="logmel",
        mel_statistics=kind,
    )
    for kind in ("corpus", "clip", "both")
}  # fmt: skip


def frontend(statistics="corpus"):
    return MelFrontend(statistics=statistics, geometry=SPEECH)


@pytest.mark.parametrize("name", waveforms())
def test_levels_equal_librosa(name):
    """Two steps of 10 ms after each other in a frame, as many frames as the convolutions give."""
    waveform = waveforms()[name]
    ours = frontend().levels(torch.from_numpy(waveform)[None])[0].numpy()
    assert ours.shape == (SPEECH.frames(len(waveform)), 80)
    # librosa puts the window in the middle of its 512 samples: ours starts 136 samples later in its
    # frame
    shifted = np.concatenate([np.zeros(136, np.float32), waveform, np.zeros(512, np.float32)])
    power = librosa.feature.melspectrogram(
        y=shifted, sr=16000, n_fft=512, win_length=240, hop_length=160, window="hann", center=False, n_mels=40, htk=True,
        norm=None,
    ).T  # fmt: skip
    expected = np.log(np.maximum(power[: 2 * len(ours)], 1e-8)).reshape(len(ours), 80)
    assert np.abs(ours - expected).max() < 1e-3 * max(1.0, np.ptp(expected))


def test_a_frame_hears_its_own_samples_alone():
    """400 of them, 320 further with each frame: the same as a frame of the convolutions."""
    waveform = torch.randn(1, 4000)
    before = frontend().levels(waveform)
    after = waveform.clone()
    after[0, 5 * 320 : 5 * 320 + 400] = 0  # all that frame 5 hears
    changed = (frontend().levels(after) != before).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [4, 5, 6]
    edge = waveform.clone()
    edge[0, 5 * 320 + 401 :] += 1.0
    edge[0, : 5 * 320] += 1.0
    assert torch.equal(frontend().levels(edge)[0, 5], before[0, 5])


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_padding_never_changes_features(kind, fill):
    torch.manual_seed(0)
    assert_padding_changes_nothing(Encoder(SHAPES[kind]).eval(), fill)


def test_a_clips_own_statistics_take_loudness_and_channel_out():
    clip, louder = waves(32000)[0], 7.0 * waves(32000)[0]
    lengths = torch.tensor([32000])
    own = frontend("clip")
    assert (own(clip[None], lengths) - own(louder[None], lengths)).abs().max() < 1e-3
    x = own(clip[None], lengths)[0]
    assert x.mean(0).abs().max() < 1e-4
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-4
    assert (frontend()(clip[None], lengths) - frontend()(louder[None], lengths)).abs().max() > 1
    both = frontend("both")
    assert both.num_channels == 160
    assert torch.equal(
        both(clip[None], lengths), torch.cat([frontend()(clip[None], lengths), own(clip[None], lengths)], -1)
    )


def test_the_corpus_statistics_are_in_the_weights():
    encoder = Encoder(SHAPES["corpus"])
    encoder.feature_extractor.measure(torch.randn(500, 80) * 3 + 2)
    other = Encoder(SHAPES["corpus"])
    other.load_state_dict(encoder.state_dict())
    waveform, lengths = padded(waves(8000))
    assert torch.equal(other.feature_extractor(waveform, lengths), encoder.feature_extractor(waveform, lengths))
    assert encoder.feature_extractor.mean_C.mean() == pytest.approx(2, abs=0.2)


def test_silence_is_finite():
    encoder = Encoder(SHAPES["clip"]).eval()
    assert torch.isfinite(encoder(torch.zeros(1, 16000)).features_BTD).all()
