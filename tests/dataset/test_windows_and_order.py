import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjepa.dataset.order import bucketed_batches, fixed_batches, padding_waste, shuffled
from sjepa.dataset.windows import crop_start, crops, tiles

lengths = st.lists(st.integers(1600, 200_000), min_size=1, max_size=30).map(lambda values: np.array(values))


@given(lengths)
def test_crops_are_one_per_clip_and_never_too_long(length_N):
    windows = crops(length_N, 50_000)
    assert np.array_equal(windows.clip_N, np.arange(len(length_N)))
    assert np.array_equal(windows.length_N, np.minimum(length_N, 50_000))
    assert np.array_equal(windows.start_N < 0, length_N > 50_000)


@given(lengths, st.sampled_from([0.0, 0.25, 0.5]))
def test_tiles_cover_every_sample_of_every_clip(length_N, overlap):
    windows = tiles(length_N, 50_000, overlap=overlap, min_samples=1600)
    for clip, length in enumerate(length_N):
        covered = np.zeros(length, bool)
        for start, size in zip(
            windows.start_N[windows.clip_N == clip], windows.length_N[windows.clip_N == clip], strict=True
        ):
            assert 1600 <= size <= 50_000
            covered[start : start + size] = True
            assert start + size <= length
        assert covered.all()


def test_random_crops_are_uniform_and_change_with_the_epoch():
    starts = [crop_start(0, epoch, 7, clip_samples=1009, window_samples=1000) for epoch in range(5000)]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    # each start 500 times on average, deviation 21; five deviations allowed
    assert np.abs(counts - 500).max() < 107
    assert starts[3] == crop_start(0, 3, 7, clip_samples=1009, window_samples=1000)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 3))
def test_every_window_once_per_epoch(count, size, epoch):
    batches = fixed_batches(count, size, seed=0, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


def test_order_depends_on_seed_and_epoch_alone():
    orders = {tuple(shuffled(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert np.array_equal(shuffled(50, seed=1, epoch=2), shuffled(50, seed=1, epoch=2))


def test_clips_of_compressed_blocks_come_together():
    locality = np.arange(4000) // 20  # 200 blocks
    order = shuffled(4000, seed=0, epoch=0, locality_N=locality)
    assert sorted(order) == list(range(4000))
    working_set = [len(np.unique(locality[order[at : at + 200]])) for at in range(0, 3800, 200)]
    assert max(working_set) <= 25  # two pools of 12 blocks at most, where a plain shuffle would touch over 120
    assert not np.array_equal(order, np.sort(order))


@pytest.mark.parametrize("count", [200, 5000])
def test_bucketed_batches_keep_the_limit_and_waste_little(count):
    rng = np.random.default_rng(0)
    length_N = (rng.gamma(4.0, 1.5, count) * 16000 + 8000).astype(np.int64).clip(max=240_000)
    epochs = [bucketed_batches(length_N, 60 * 16000, seed=0, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(np.concatenate(batches)) == list(range(count))
        assert max(len(batch) * length_N[batch].max() for batch in batches) <= 60 * 16000
    assert len({len(batches) for batches in epochs}) == 1
    assert len({tuple(map(tuple, batches)) for batches in epochs}) == 3
    if count == 5000:
        assert padding_waste(epochs[0], length_N) <= 0.05


def test_a_window_over_the_limit_goes_alone():
    batches = bucketed_batches(np.array([100, 5000, 100]), 1000, seed=0, epoch=0)
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]
