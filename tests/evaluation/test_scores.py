import numpy as np
import pytest

from sjepa.evaluation.scores import BySpeaker, Probed, Score, interval, rows_of


def test_a_ratio_counts_speakers_as_weights_say():
    part = BySpeaker.ratio([1, 0, 2], [2, 2, 2], np.array([0, 0, 2]), 4)
    assert part.present_S.tolist() == [True, False, True, False]
    assert part.figure(np.ones(4)) == pytest.approx(3 / 6)
    assert part.figure(np.array([1.0, 0, 0, 0])) == pytest.approx(1 / 4)
    assert np.isnan(part.figure(np.array([0.0, 5, 0, 0])))


def test_the_interval_is_that_of_a_mean_over_speakers():
    """Of equally many examples each: close to ± 1.96 standard errors of the speakers' own rates."""
    rng = np.random.default_rng(0)
    rate = np.clip(rng.normal(0.6, 0.1, 40), 0, 1)
    part = BySpeaker.ratio(100 * rate, [100] * 40, np.arange(40), 40)
    low, high = interval([part], seed=0)
    error = rate.std() / np.sqrt(40)
    assert low == pytest.approx(rate.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(rate.mean() + 1.96 * error, abs=0.3 * error)
    assert interval([part], seed=0) == (low, high)


def test_there_is_none_without_speakers_or_with_too_few():
    few = BySpeaker.ratio([1, 0], [1, 1], np.array([0, 1]), 2)
    for parts in ([None], [few], [few, None]):
        assert all(np.isnan(interval(parts, seed=0)))
    (row,) = rows_of("t", Probed("p", [Score({"accuracy": 0.5}, 3, 4)], float("nan")), "f", "", seed=0)
    assert np.isnan(row.low)
    assert row.mean == 0.5
