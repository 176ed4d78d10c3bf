import numpy as np
import torch

from sjepa.core.random import generator, hash_array, key, uniform_tensor


def test_keys_tell_types_and_order_apart():
    assert len({key(1, "a"), key("1", "a"), key("a", 1), key(1, "a", 0), key(11, "a")}) == 5


def test_same_key_same_numbers_whatever_ran_before():
    first = generator(0, "x", 3).random(5)
    generator(0, "y").random(100)
    assert np.array_equal(first, generator(0, "x", 3).random(5))


def test_tensor_hash_is_the_array_hash():
    base = key(7, "mask")
    clips, starts = np.arange(5)[:, None], np.arange(9)
    expected = (hash_array(base, clips, starts) >> np.uint64(40)).astype(np.float32) * 2.0**-24
    drawn = uniform_tensor(base, torch.from_numpy(clips), torch.from_numpy(starts))
    assert np.array_equal(drawn.numpy(), expected)


def test_hashes_are_uniform_and_uncorrelated():
    # 10⁵ draws: the mean of U(0, 1) has deviation 0.0009, a correlation 0.003; five deviations
    # allowed
    draws = uniform_tensor(key(3), torch.arange(100_001), torch.tensor(5)).double().numpy()
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.016
