"""Measures of reconstructed audio, use of tokens, other codecs."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sjepa.core.errors import UserError
from sjepa.dataset.batch import Sample, collate
from sjepa.tokenizer.codec.comparison import SHUFFLED, TRAINED, UNTRAINED, Systems
from sjepa.tokenizer.codec.others import load_other
from sjepa.tokenizer.codec.quality import Quality, si_sdr
from sjepa.tokenizer.codec.usage import TokenUsage, usage_table
from tests.tokenizer.test_tokens import built

RNG = np.random.default_rng(0)


def voiced(seconds=2.0, rate=16000):
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 20))
    return (0.1 * tone * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def test_si_sdr_is_that_of_its_definition():
    """10 log10 of target power over noise power, for noise that is orthogonal to the target; no
    matter how loud, and with any offset."""
    wanted = RNG.standard_normal(16000)
    wanted -= wanted.mean()
    noise = RNG.standard_normal(16000)
    noise -= noise.mean()
    noise -= (noise @ wanted) / (wanted @ wanted) * wanted
    for decibels in (-10, 0, 25):
        scaled = noise * np.sqrt((wanted @ wanted) / (noise @ noise)) * 10 ** (-decibels / 20)
        found = (3.5 * (wanted + scaled) + 0.2).astype(np.float32)
        assert si_sdr(found, wanted.astype(np.float32)) == pytest.approx(decibels, abs=1e-3)
    assert si_sdr(np.zeros(100, np.float32), wanted[:100].astype(np.float32)) == -math.inf
    assert math.isnan(si_sdr(np.ones(100, np.float32), np.zeros(100, np.float32)))


def test_the_more_noise_the_worse():
    quality, clean = Quality(16000), voiced()
    noise = RNG.standard_normal(len(clean)).astype(np.float32)
    one, two, three = (quality.of(clean + level * noise, clean) for level in (0, 0.03, 0.3))
    assert one["stoi"] == pytest.approx(1, abs=1e-4)
    assert one["mel"] == one["spectral"] == one["waveform"] == 0
    for name in ("mel", "spectral", "waveform"):
        assert one[name] < two[name] < three[name]
    for name in ("si_sdr", "stoi"):
        assert one[name] > two[name] > three[name]


def test_what_is_not_defined_is_no_number():
    quality = Quality(16000)
    short, quiet = quality.of(voiced(0.3), voiced(0.3)), quality.of(voiced(1), np.zeros(16000, np.float32))
    assert math.isnan(short["stoi"])
    assert math.isnan(quiet["si_sdr"])
    assert math.isfinite(quiet["mel"])


def test_usage_is_that_of_all_frames():
    tokens = RNG.integers(0, 30, (5000, 3)).astype(np.int32)
    tokens[:, 1] = tokens[:, 1] ** 2 // 30
    tokens[:, 2] = 7
    usage = TokenUsage((100, 30, 30))
    for part in np.split(tokens, [10, 11, 3000]):
        usage.add(part)
    assert usage.frames == 5000
    for group, found in enumerate(usage.groups()):
        counts = np.unique(tokens[:, group], return_counts=True)[1]
        assert found.used == len(counts)
        assert found.entropy == pytest.approx(scipy.stats.entropy(counts, base=2))
        assert found.perplexity == pytest.approx(2**found.entropy)
    assert [group.nominal for group in usage.groups()][1] == pytest.approx(np.log2(30))
    assert "1    3.3%" in usage_table(usage.groups()).splitlines()[3]
    with pytest.raises(ValueError, match="no tokens"):
        TokenUsage((4,)).groups()


def batch(*waveforms):
    return collate([(Sample(own, own, number, number, f"{number}.wav"), []) for number, own in enumerate(waveforms)])


def test_a_codec_is_compared_piece_by_piece():
    """Padding and batch mates change nothing; shuffled tokens are the same tokens in another
    order."""
    codec, pairs = built().eval(), []
    clips = (voiced(1.0), voiced(0.77))
    found = Systems(codec, (), seed=0).compare([batch(*clips)], warn=pytest.fail, keep=pairs.append)
    assert found.names == ["0.wav", "1.wav"]
    assert set(found.values) == {TRAINED, SHUFFLED, UNTRAINED}
    assert found.audio == pytest.approx(1.77)
    assert found.usage.frames == 50 + 39
    for pair, clip in zip(pairs, clips, strict=True):
        assert np.array_equal(pair.original, clip)
        with torch.no_grad():
            alone = codec.decode(codec.encode(torch.from_numpy(clip)[None]))[0, : len(clip)].numpy()
        assert np.abs(pair.made[TRAINED] - alone).max() < 1e-5
        assert all(len(audio) == len(clip) for audio in pair.made.values())
        assert np.abs(pair.made[SHUFFLED] - alone).max() > 1e-3
    again = Systems(codec, (), seed=0).compare([batch(*clips)], warn=pytest.fail, keep=lambda pair: None)
    for system in found.values:
        assert again.mean(system, "mel") == found.mean(system, "mel")
    table = found.table().splitlines()
    assert len(table) == 4
    assert "STOI" in table[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained codecs of transformers, very small."""
    transformers, root = pytest.importorskip("transformers"), tmp_path_factory.mktemp("codecs")
    encodec = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=16, num_lstm_layers=1
    )
    transformers.EncodecModel(encodec).save_pretrained(root / "encodec")
    mimi = transformers.MimiConfig(
        **{"hidden_size": 32, "num_filters": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
        **{"num_key_value_heads": 2, "intermediate_size": 32, "codebook_size": 16, "codebook_dim": 16},
        **{"vector_quantization_hidden_dimension": 16, "num_quantizers": 8, "upsample_groups": 32},
    )
    transformers.MimiModel(mimi).save_pretrained(root / "mimi")
    (root / "bert").mkdir()
    transformers.BertConfig().save_pretrained(root / "bert")
    return root


@pytest.mark.parametrize(("name", "bits"), [("encodec", 3000), ("mimi", 150)])
def test_other_codecs_at_the_nearest_rate(folders, name, bits):
    codec = load_other(folders / name, bits * 1.1, torch.device("cpu"))
    assert codec.bits_per_second == bits
    audio = voiced(0.51)
    made = codec.at(audio, 16000)
    assert made.shape == audio.shape
    assert made.dtype == np.float32
    assert np.array_equal(made, codec.at(audio, 16000))


def test_what_is_no_codec_is_told(folders, tmp_path):
    with pytest.raises(UserError, match="bert: a bert model, not encodec or mimi"):
        load_other(folders / "bert", 1000, torch.device("cpu"))
    with pytest.raises(UserError, match=r"without config\.json"):
        load_other(tmp_path, 1000, torch.device("cpu"))
