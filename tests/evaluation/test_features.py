import numpy as np
import pytest
import torch

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.dataset.batch import Failure, Sample, collate
from sjepa.dataset.windows import tiles
from sjepa.evaluation.features import ClipBatches, extract, mfcc_extractor
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.extractors import encoder_extractor
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from sjepa.s_jepa.pretrained import PretrainedEncoder

LENGTHS = np.array([20000, 8000, 16100])  # the last one's second window is drawn back


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(16, 3, TransformerShape(32, 2, 64), position_groups=4))
    engine = Engine(device="cpu", precision="fp32", launch=False)
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(length)).astype(np.float32) for length in LENGTHS]
    return engine, encoder_extractor("ours", PretrainedEncoder(encoder), engine), encoder.eval(), clips


def extracted(parts, *, broken=None, keep_frames=True, layers=(0, 2)):
    _, extractor, _, clips = parts
    windows = tiles(LENGTHS, 16000, min_samples=4000)
    items = []
    for number in range(len(windows)):
        clip, start, length = (int(column[number]) for column in (windows.clip_N, windows.start_N, windows.length_N))
        audio = clips[clip][start : start + length]
        lost = (None, [Failure("gone", "no such file")])
        items.append(lost if number == broken else (Sample(audio, audio, clip, number, ""), []))
    told = []
    batches = [collate(items[:3]), collate(items[3:])]
    found = extract(extractor, layers, ClipBatches(batches, windows, 3), keep_frames=keep_frames, warn=told.append)
    return found, windows, told


@torch.no_grad()
def test_features_are_the_encoders_window_by_window(parts):
    found, windows, _ = extracted(parts)
    _, _, encoder, clips = parts
    for clip in range(3):
        own, times = [], []
        for number in np.flatnonzero(windows.clip_N == clip):
            start, length = int(windows.start_N[number]), int(windows.length_N[number])
            layers = encoder(torch.from_numpy(clips[clip][start : start + length])[None]).layers
            for frame in range(layers[0].shape[1]):
                seconds = (start + 320 * frame + 200) / 16000
                if not times or seconds > times[-1] + 1e-9:  # what the window before has not seen yet
                    times.append(seconds)
                    own.append(torch.stack([layers[0][0, frame], layers[2][0, frame]]))
        expected = torch.stack(own)
        assert np.allclose(found.seconds[clip], times)
        assert found.frames[clip].shape == expected.shape
        assert (found.frames[clip] - expected).abs().max() < 1e-4
        assert (found.means[clip] - expected.mean(0)).abs().max() < 1e-4
    assert len(found.seconds[2]) == 49 + 1  # a second window of 4,000 samples adds one frame of its own
    means = extracted(parts, keep_frames=False)[0]
    assert means.frames == [None] * 3
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(means.means, found.means, strict=True))


def test_a_clip_with_a_window_that_is_lost_is_left_out(parts):
    found, windows, told = extracted(parts, broken=1)
    assert windows.clip_N[1] == 0
    assert [mean is None for mean in found.means] == [True, False, False]
    assert [frames is None for frames in found.frames] == [True, False, False]
    assert [failure.name for failure in told] == ["gone"]


def test_layers_are_named_once_and_checked(parts):
    engine, extractor, _, _ = parts
    assert extractor.columns([-1, 2, 0, "learned"]) == [("2", [2]), ("0", [0]), ("learned", [0, 1, 2])]
    with pytest.raises(UserError, match=r"probe.layers: ours has layers 0 to 2, not -4"):
        extractor.columns([-4])
    assert mfcc_extractor(engine, SPEECH).columns([-1, "learned", 5]) == [("", [0])]
