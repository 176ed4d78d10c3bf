"""Losses of reconstructed audio, and the discriminators."""

import librosa
import numpy as np
import pytest
import torch

from sjepa.tokenizer.codec.losses import (
    MelDistance,
    Spectra,
    SpectralLoss,
    adversarial_loss,
    feature_loss,
    judges_loss,
    waveform_error,
)
from sjepa.tokenizer.modules.discriminators import Discriminators, DiscriminatorShape, FoldedConv1d, Judged


def clips():
    torch.manual_seed(0)
    wanted, found = (0.1 * torch.randn(3, 6000) for _ in range(2))
    lengths = torch.tensor([6000, 3100, 2500])
    for clip, length in enumerate(lengths.tolist()):
        wanted[clip, length:] = found[clip, length:] = 0.0
    return found, wanted, lengths


def test_the_waveform_error_is_over_real_samples():
    found, wanted, lengths = clips()
    inside = torch.arange(6000) < lengths[:, None]
    assert float(waveform_error(found, wanted, lengths)) == pytest.approx(float((found - wanted).abs()[inside].mean()))


@pytest.mark.parametrize("loss", [SpectralLoss((512,)), MelDistance(16000, bands=20, size=512)])
def test_padding_changes_no_spectral_loss(loss):
    """The loss of a batch is the mean of its clips', weighted by their frames."""
    found, wanted, lengths = clips()
    alone = [float(loss(found[i : i + 1, :n], wanted[i : i + 1, :n], None)) for i, n in enumerate(lengths.tolist())]
    frames = lengths.numpy() // 128 + 1
    assert float(loss(found, wanted, lengths)) == pytest.approx(np.average(alone, weights=frames), rel=1e-4)
    assert float(loss(wanted, wanted, lengths)) == 0


def test_magnitudes_are_librosas():
    _, wanted, _ = clips()
    own = Spectra(1024, mel_bands=30, sample_rate=24000)(wanted[:1])[0].numpy()
    theirs = librosa.feature.melspectrogram(
        y=wanted[0].numpy(), sr=24000, n_fft=1024, hop_length=256, n_mels=30, power=1.0, pad_mode="constant"
    )
    assert np.allclose(own, theirs, rtol=1e-3, atol=1e-5)


def test_silence_has_a_gradient():
    """Of a finite size, where magnitudes are 0."""
    audio = torch.zeros(1, 4000, requires_grad=True)
    SpectralLoss()(audio, 0.1 * torch.randn(1, 4000), None).backward()
    assert bool(audio.grad.isfinite().all())


def test_adversarial_losses_are_least_squares():
    real, made = [Judged(torch.tensor([1.0, 0.5]), ())], [Judged(torch.tensor([0.5, 0.0]), ())]
    assert float(judges_loss(real, made)) == pytest.approx((0 + 0.25) / 2 + (0.25 + 0) / 2)
    assert float(adversarial_loss(made)) == pytest.approx((0.25 + 1) / 2)


def test_feature_matching_moves_the_decoder_alone():
    one, two = (torch.randn(2, 4, 10, requires_grad=True) for _ in range(2))
    loss = feature_loss([Judged(one, (one,))], [Judged(two, (two,))])
    assert float(loss) == pytest.approx(float((one - two).abs().mean()))
    loss.backward()
    assert one.grad is None
    assert two.grad.abs().max() > 0


def test_every_discriminator_judges_any_length():
    shape = DiscriminatorShape(windows=(256,), channels=4)
    judges = Discriminators(shape)
    for samples in (4000, 4001):
        found = judges(torch.randn(2, samples))
        assert len(found) == 5 + 3 + 1
        assert all(len(judged.features) > 3 and judged.scores.isfinite().all() for judged in found)


def test_padding_changes_nothing_that_is_judged():
    """A clip in a padded batch has the losses that it has alone."""
    judges = Discriminators(DiscriminatorShape(windows=(256,), channels=4))
    length, clips = torch.tensor([4000, 2345]), 0.1 * torch.randn(2, 2, 4000)
    clips[:, 1, 2345:] = 0
    real, made = (judges(audio, length) for audio in clips)
    alone = [judges(audio[1:, :2345]) for audio in clips]

    def last(found):
        """The second clip, from the batch."""
        return [
            Judged(
                one.scores[len(one.scores) // 2 :],
                tuple(item[len(item) // 2 :] for item in one.features),
                tuple(mask[len(mask) // 2 :] for mask in one.masks),
            )
            for one in found
        ]

    assert float(adversarial_loss(last(made))) == pytest.approx(float(adversarial_loss(alone[1])), rel=1e-4)
    assert float(feature_loss(last(real), last(made))) == pytest.approx(float(feature_loss(*alone)), rel=1e-4)
    assert float(judges_loss(last(real), last(made))) == pytest.approx(float(judges_loss(*alone)), rel=1e-4)


def test_the_sizes_are_those_of_hifigan():
    """Its published discriminators have 41.1 (periods) and 29.6 million (scales) weights."""
    judges = Discriminators(DiscriminatorShape())
    count = [sum(parameter.numel() for parameter in judge.parameters()) / 1e6 for judge in judges.all]
    assert sum(count[:5]) == pytest.approx(41.1, abs=0.05)
    assert sum(count[5:]) == pytest.approx(29.6, abs=0.05)


def test_a_period_is_compared_with_itself():
    """Samples of one phase of the period do not change the scores of another phase."""
    judge, audio = Discriminators(DiscriminatorShape(periods=(5,), scales=0, channels=4)).all[0], torch.randn(1, 500)
    other = audio.clone()
    other[0, 2::5] += 1
    changed = (judge(audio).scores - judge(other).scores).abs().sum((1, 2))  # by phase
    assert changed[2] > 0
    assert not changed[[0, 1, 3, 4]].any()


def test_strides_folded_into_channels_are_the_same_convolution():
    for stride, kernel, groups, steps in ((2, 41, 4, 101), (4, 41, 1, 64), (3, 5, 2, 7), (2, 4, 1, 9)):
        folded = FoldedConv1d(8, 12, kernel, stride, kernel // 2, groups=groups)
        plain = torch.nn.Conv1d(8, 12, kernel, stride, kernel // 2, groups=groups)
        plain.load_state_dict(folded.state_dict())
        audio = torch.randn(2, 8, steps)
        torch.testing.assert_close(folded(audio), plain(audio))
