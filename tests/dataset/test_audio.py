import io

import numpy as np
import pytest
import soxr

from sjepa.dataset.audio import DecodeError, decode, decode_window, probe, resampled_length
from tests.support.audio import encode, tone

LOSSLESS, LOSSY = ["wav", "flac", "aiff"], ["ogg", "mp3", "m4a", "aac", "webm", "opus"]


def correlation(a, b, most_shift=3000):
    """Highest normalised correlation over small shifts: codecs may delay."""
    length = min(len(a), len(b)) - most_shift
    b = b[:length] / np.linalg.norm(b[:length])
    candidates = (np.dot(a[s : s + length], b) / np.linalg.norm(a[s : s + length]) for s in range(0, most_shift, 1))
    return max(candidates)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ending", LOSSLESS + LOSSY)
def test_every_format_decodes_to_mono(ending, channels):
    rate = 48000 if ending in ("webm", "opus") else 44100
    samples = tone(1.5, rate, channels)
    file = io.BytesIO(encode(samples, rate, ending))
    info = probe(file)
    mono, decoded_rate = decode(file)
    assert (info.rate, decoded_rate, info.channels) == (rate, rate, channels)
    assert abs(info.seconds - 1.5) < 0.15
    assert mono.dtype == np.float32
    assert mono.ndim == 1
    expected = samples.mean(axis=1)
    if ending in LOSSLESS:
        assert np.abs(mono - expected).max() < 1e-4
    else:
        assert correlation(mono, expected) > 0.98


@pytest.mark.parametrize("ending", LOSSLESS + LOSSY)
@pytest.mark.parametrize("rate", [16000, 44100, 48000, 8000])
def test_a_window_equals_that_slice_of_the_whole(ending, rate):
    if ending in ("opus", "webm") and rate == 44100:
        pytest.skip("Opus has no such rate")
    data = encode(tone(4.0, rate), rate, ending)
    info = probe(io.BytesIO(data))
    length = resampled_length(info.samples, info.rate, 16000)
    whole = decode_window(io.BytesIO(data), info, start=0, length=length, rate=16000)
    for start, size in [(0, 5000), (12345, 16000), (30001, 20000), (length - 4000, 4000)]:
        window = decode_window(io.BytesIO(data), info, start=start, length=size, rate=16000)
        expected = whole[start : start + size]
        assert len(window) == len(expected)
        # lossy decoders settle within the pre-roll, but AAC fills bands with noise of its own
        assert np.abs(window - expected).max() < (1e-3 if ending in LOSSLESS else 5e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampled_windows_keep_the_grid_of_the_whole_clip(rate):
    samples = tone(3.0, rate)
    data = io.BytesIO(encode(samples, rate, "wav"))
    info = probe(data)
    expected = soxr.resample(decode(data)[0], rate, 16000, quality="HQ")[20000:30000]
    window = decode_window(data, info, start=20000, length=10000, rate=16000)
    assert np.abs(window - expected).max() < 1e-4


def test_eight_channels_are_averaged():
    samples = tone(0.5, 16000, 8)
    mono, _ = decode(io.BytesIO(encode(samples, 16000, "wav")))
    assert np.abs(mono - samples.mean(1)).max() < 1e-4


def test_a_seek_reads_only_what_it_needs():
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            Counting.count += len(data)
            return data

        def readinto(self, buffer):
            count = super().readinto(buffer)
            Counting.count += count
            return count

    file = Counting(encode(tone(120.0), 16000, "flac"))
    info = probe(file)
    Counting.count = 0
    decode_window(file, info, start=60 * 16000, length=16000, rate=16000)
    assert Counting.count < len(file.getvalue()) / 4


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "^empty file$"), (b"RIFF", "^not audio"), (b"no audio at all" * 100, "^not audio")],
)
def test_what_is_no_audio_says_so(data, said):
    with pytest.raises(DecodeError, match=said):
        probe(io.BytesIO(data))


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_file_that_has_another_rate_by_now_is_not_read(rate):
    info = probe(io.BytesIO(encode(tone(1.0, rate), rate, "wav")))
    with pytest.raises(DecodeError, match=f"48000 Hz, where {rate} Hz were found when it was scanned"):
        decode_window(io.BytesIO(encode(tone(1.0, 48000), 48000, "wav")), info, start=0, length=8000, rate=16000)


def test_one_sample_is_audio():
    mono, _ = decode(io.BytesIO(encode(np.full((1, 1), 0.5, np.float32), 16000, "wav")))
    assert mono == pytest.approx([0.5], abs=1e-4)
