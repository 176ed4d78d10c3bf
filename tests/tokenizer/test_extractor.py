"""The encoder as features for probes."""

from pathlib import Path

import pytest
import torch

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.dataset.audio import resample
from sjepa.tokenizer.extractor import token_extractor
from sjepa.tokenizer.method import network_shape
from sjepa.tokenizer.modules.encoder import TokenEncoder
from tests.tokenizer.runs import configured


@pytest.fixture(scope="module")
def engine():
    return Engine(device="cpu", precision="fp32", launch=False)


def built(rate):
    torch.manual_seed(0)
    sizes = ["model.overrides.conformer_layers=2", "model.overrides.strides=[8,5,9]"]
    config = configured(Path(), Path(), f"dataset.sample_rate={rate}", *sizes)
    return TokenEncoder(network_shape(config).encoder).eval()


def noise(*lengths):
    clips = [0.1 * torch.randn(length) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor(lengths)


def test_an_encoder_of_another_rate_hears_resampled_audio(engine):
    """Clip by clip, with as many frames as the extractor's geometry says."""
    encoder, (waveform, lengths) = built(24000), noise(16000, 9001)
    extractor = token_extractor("own", encoder, 16000, engine)
    with torch.no_grad():
        found = extractor.compute(waveform, lengths, None)
        for clip, samples in enumerate(lengths.tolist()):
            alone = torch.from_numpy(resample(waveform[clip, :samples].numpy(), 16000, 24000))
            layers = torch.stack(encoder(alone[None]).layers)[:, 0]
            assert layers.shape[1] == extractor.geometry.frames(samples)
            assert (found[:, clip, : layers.shape[1]] - layers).abs().max() < 1e-4
    assert extractor.geometry.hop_samples / 16000 == encoder.geometry.hop_samples / 24000


def test_a_frame_must_be_whole_samples(engine):
    with pytest.raises(UserError, match="no whole number of samples at 16000 Hz"):
        token_extractor("own", built(22050), 16000, engine)
