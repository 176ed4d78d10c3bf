"""Statistical claims: tolerances are five standard deviations of the count in question."""

import numpy as np
import pytest

from sjepa.dataset import reservoir
from sjepa.dataset.reservoir import draw_frames


def test_every_frame_of_a_small_corpus_is_taken():
    lengths = np.array([3, 60, 1, 200])
    sample = draw_frames(lengths, np.arange(4), 1000, seed=0)
    assert sample.total == 264
    assert all(np.array_equal(frames, np.arange(n)) for frames, n in zip(sample.frames_M, lengths, strict=True))


@pytest.mark.slow
def test_every_frame_is_as_likely_as_any_other():
    """200 clips of 5 to 400 frames, a tenth of all frames drawn 400 times: first and last clip,
    short and long ones, and first and last frames come up equally often."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 400, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total, wanted, draws = int(offsets[-1]), int(offsets[-1]) // 10, 400
    counts = np.zeros(total)
    for seed in range(draws):
        sample = draw_frames(lengths, np.arange(200), wanted, seed=seed)
        for window, frames in zip(sample.window_M, sample.frames_M, strict=True):
            counts[offsets[window] + frames] += 1
    expected = draws * 0.1
    deviation = np.sqrt(draws * 0.1 * 0.9)
    assert np.abs(counts - expected).max() < 5.5 * deviation  # of 40,000 frames one may well reach 4.5
    parts = {"first clip": slice(0, lengths[0]), "last clip": slice(offsets[-2], total)}
    parts |= {"first half": slice(0, total // 2), "last half": slice(total // 2, total)}
    for part in parts.values():
        mean_deviation = deviation / np.sqrt(len(counts[part]))
        assert abs(counts[part].mean() - expected) < 5 * mean_deviation
    short = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in np.flatnonzero(lengths < 50)])
    assert abs(counts[short].mean() - expected) < 5 * deviation / np.sqrt(len(short))


@pytest.mark.slow
@pytest.mark.parametrize("most_hashed", [10**9, 0])
def test_groups_keep_the_sample_uniform_on_a_large_corpus(monkeypatch, most_hashed):
    """With groups of 50 frames, as for corpora of thousands of hours: means over clips of every
    length agree."""
    monkeypatch.setattr(reservoir, "_FEWEST_GROUPS", 1)
    monkeypatch.setattr(reservoir, "_MOST_HASHED", most_hashed)
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(1, 49, 1000), rng.integers(50, 700, 1000)])
    short_drawn = long_drawn = 0
    draws, wanted = 200, 20_000
    for seed in range(draws):
        sample = draw_frames(lengths, np.arange(2000), wanted, seed=seed)
        sizes = np.array([len(frames) for frames in sample.frames_M])
        short_drawn += sizes[sample.window_M < 1000].sum()
        long_drawn += sizes[sample.window_M >= 1000].sum()
    rate_short, rate_long = short_drawn / lengths[:1000].sum(), long_drawn / lengths[1000:].sum()
    # about 200 short clips' worth of groups per draw over 200 draws: a relative deviation near 1 %;
    # 5 % allowed
    assert abs(rate_short / rate_long - 1) < 0.05


@pytest.mark.slow
def test_cost_does_not_grow_with_the_corpus():
    wanted = 200_000
    decoded = []
    for clips in (20_000, 200_000, 1_000_000):
        sample = draw_frames(np.full(clips, 700), np.arange(clips), wanted, seed=0)
        assert abs(sample.total - wanted) < 0.01 * wanted
        decoded.append(len(sample.window_M))
    assert max(decoded) <= 1.1 * min(decoded)
    assert max(decoded) < 5000


def test_the_choice_depends_on_names_and_not_on_order():
    lengths, ids = np.array([50, 80, 120, 40]), np.array([7, 3, 9, 1])
    sample = draw_frames(lengths, ids, 60, seed=0)
    order = np.array([2, 0, 3, 1])
    shuffled = draw_frames(lengths[order], ids[order], 60, seed=0)
    by_id = {int(ids[w]): f.tolist() for w, f in zip(sample.window_M, sample.frames_M, strict=True)}
    by_id_shuffled = {int(ids[order][w]): f.tolist() for w, f in zip(shuffled.window_M, shuffled.frames_M, strict=True)}
    assert by_id == by_id_shuffled
