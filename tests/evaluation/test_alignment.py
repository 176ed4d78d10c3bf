import itertools

import numpy as np
import pytest

from sjepa.evaluation.alignment import SILENCE, align
from sjepa.evaluation.labels import frame_centres, phones_at


def test_the_times_of_known_phones_are_found():
    """Clips of three phones whose frames lie around a place of each: nearly every frame gets its own."""
    rng = np.random.default_rng(0)
    place = {name: 2 * rng.normal(size=6) for name in (SILENCE, "A", "B", "C")}
    features, phones, truth = [], [], []
    for _ in range(30):
        said = [str(name) for name in rng.permutation(["A", "B", "C"])]
        names = [name for name in (SILENCE, *said, SILENCE) for _ in range(rng.integers(4, 12))]
        x = np.array([place[name] for name in names]) + 0.5 * rng.normal(size=(len(names), 6))
        features.append((x - x.mean(0)) / x.std(0))
        phones.append(said)
        truth.append(names)
    spans = align(features, phones)
    assert all(
        [span.phone for span in own] == [SILENCE, *said, SILENCE] for own, said in zip(spans, phones, strict=True)
    )
    right = [
        found == name
        for own, names in zip(spans, truth, strict=True)
        for found, name in zip(phones_at(own, frame_centres(0, len(names))), names, strict=True)
    ]
    assert np.mean(right) > 0.95


def test_spans_follow_each_other_without_gaps_and_repeated_phones_stay_apart():
    rng = np.random.default_rng(1)
    (own,) = align([rng.normal(size=(20, 4))], [["A", "A", "B"]])
    assert [span.phone for span in own] == [SILENCE, "A", "A", "B", SILENCE]
    assert own[0].start == pytest.approx(0.0125 - 0.01)
    assert all(one.end == pytest.approx(other.start) for one, other in itertools.pairwise(own))
    assert own[-1].end == pytest.approx(0.0125 + 19 * 0.02 + 0.01)
