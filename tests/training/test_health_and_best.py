"""What stops a run, and which weights are the best."""

import math

import pytest

from sjepa.dataset.batch import Failure
from sjepa.s_jepa.metrics import FIGURES
from sjepa.training.figures import Best
from sjepa.training.health import NonFiniteUpdates, RunStopped, UnreadableClips

FIGURE = {figure.name: figure for figure in FIGURES}


def test_ten_updates_in_a_row_that_are_not_finite_stop_the_run():
    guard = NonFiniteUpdates()
    for finite in [False] * 9 + [True] + [False] * 9:
        guard.saw(finite)
        guard.check()
    guard.saw(False)
    with pytest.raises(RunStopped, match="10 updates in a row"):
        guard.check()
    assert guard.total == 19


def test_more_than_one_percent_of_unreadable_clips_stop_the_run_with_the_list():
    guard = UnreadableClips(300)
    guard.saw([Failure(f"clip {number}", "cut off") for number in range(3)])
    guard.check()
    guard.saw([Failure("clip 2", "cut off")])  # the same clip again
    guard.check()
    guard.saw([Failure("clip 3", "empty")])
    with pytest.raises(RunStopped, match=r"4 of 300 clips.*clip 0: cut off"):
        guard.check()
    later = UnreadableClips(300)  # the files are back, and the run goes on in the same epoch
    later.load_state_dict(guard.state_dict())
    later.check()
    later.saw([Failure(f"clip {number}", "gone") for number in range(10, 13)])
    later.check()
    later.saw([Failure("clip 13", "gone")])
    with pytest.raises(RunStopped, match="8 of 300 clips"):
        later.check()


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("kl", [3, 2, 2.5, 1], [1, 1, 0, 1]),
        ("top1", [0.1, 0.3, 0.2], [1, 1, 0]),
        ("pitch_match", [0.8, 0.9, 0.7], [1, 1, 0]),
    ],
)
def test_best_goes_the_right_way(metric, values, expected):
    best = Best(FIGURE[metric])
    assert [best.offer(value, epoch) for epoch, value in enumerate(values)] == [bool(e) for e in expected]


def test_nan_is_never_the_best():
    best = Best(FIGURE["kl"])
    assert not best.offer(math.nan, 0)
    assert best.offer(5.0, 1)
    assert not best.offer(math.nan, 2)
    assert (best.value, best.epoch) == (5.0, 1)


def test_other_targets_make_another_best_unless_the_metric_compares_across_them():
    for metric, epoch in (("kl", -1), ("pitch_match", 3)):
        best = Best(FIGURE[metric], 0.5, 3)
        best.restart()
        assert best.epoch == epoch


def test_a_run_that_learned_nothing_does_not_end_well():
    guard = NonFiniteUpdates()
    for _ in range(3):
        guard.saw(False)
        guard.check()
    with pytest.raises(RunStopped, match="not one of 3 updates"):
        guard.check_end()
    again = NonFiniteUpdates()
    again.load_state_dict(guard.state_dict())
    again.saw(True)
    again.check_end()
