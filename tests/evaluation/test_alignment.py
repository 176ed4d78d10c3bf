import itertools

import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.core.random import generator
from sjepa.dataset.demo import LEXICON, speaker, utterance
from sjepa.evaluation.alignment import SILENCE, align, best_paths
from sjepa.evaluation.labels import Span, phones_at
from sjepa.features.mfcc import MFCC
from sjepa.gmm.space import MixtureSpace, SpaceSettings


def test_the_times_of_known_phones_are_found():
    """Clips of three phones whose frames lie around a place of each: nearly every frame gets its
    own."""
    rng = np.random.default_rng(0)
    place = {name: 2 * rng.normal(size=6) for name in (SILENCE, "A", "B", "C")}
    features, words, truth = [], [], []
    for _ in range(30):
        said = [str(name) for name in rng.permutation(["A", "B", "C"])]
        names = [name for name in (SILENCE, *said, SILENCE) for _ in range(rng.integers(4, 12))]
        x = np.array([place[name] for name in names]) + 0.5 * rng.normal(size=(len(names), 6))
        features.append((x - x.mean(0)) / x.std(0))
        words.append([said])
        truth.append(names)
    spans = align(features, words, SPEECH)
    assert all(
        [span.phone for span in own] == [SILENCE, *said, SILENCE] for own, (said,) in zip(spans, words, strict=True)
    )
    right = [
        found == name
        for own, names in zip(spans, truth, strict=True)
        for found, name in zip(phones_at(own, SPEECH.centres(0, len(names))), names, strict=True)
    ]
    assert np.mean(right) > 0.95


@pytest.mark.slow
def test_pauses_between_words_are_found_in_generated_speech():
    """Of all frames 0.88 were right here, pauses and phones; 0.79 when a word had to follow the one
    before without a pause."""
    spoken = [utterance(speaker(n % 6, 0), generator(0, "alignment", n)) for n in range(60)]
    mfcc = [MFCC(SPEECH)(torch.from_numpy(one.audio)[None], torch.tensor([len(one.audio)]))[0] for one in spoken]
    space = MixtureSpace(SpaceSettings("clip"), mfcc[0].shape[1])
    features = [space.frames(x[None], torch.tensor([len(x)]))[0].double().numpy() for x in mfcc]
    words = [[LEXICON[word].split() for word in one.words] for one in spoken]
    right = [
        found == true
        for spans, one, x in zip(align(features, words, SPEECH), spoken, mfcc, strict=True)
        for found, true in zip(
            phones_at(spans, SPEECH.centres(0, len(x))),
            phones_at([Span(*phone) for phone in one.phones], SPEECH.centres(0, len(x))),
            strict=True,
        )
    ]
    assert np.mean(right) > 0.84


def test_spans_follow_each_other_without_gaps_and_repeated_phones_stay_apart():
    rng = np.random.default_rng(1)
    (own,) = align([rng.normal(size=(20, 4))], [[["A", "A"], ["B"]]], SPEECH)
    assert [span.phone for span in own if span.phone != SILENCE] == ["A", "A", "B"]
    assert own[0].start == pytest.approx(0.0125 - 0.01)
    assert all(one.end == pytest.approx(other.start) for one, other in itertools.pairwise(own))
    assert own[-1].end == pytest.approx(0.0125 + 19 * 0.02 + 0.01)


def test_a_clip_of_as_many_frames_as_phones_has_no_room_for_pauses():
    rng = np.random.default_rng(2)
    own, _ = align([rng.normal(size=(3, 4)), rng.normal(size=(30, 4))], [[["A", "B"], ["C"]], [["C"], ["A"]]], SPEECH)
    assert [span.phone for span in own] == ["A", "B", "C"]


@pytest.mark.parametrize("frames", [1, 3])
def test_so_little_that_nothing_varies_is_aligned_all_the_same(frames):
    said = [["A", "B"], ["C"]] if frames == 3 else [["A"]]
    (own,) = align([np.zeros((frames, 4))], [said], SPEECH)
    assert [span.phone for span in own] == [phone for word in said for phone in word]


@pytest.mark.parametrize("pauses", [[0, 0, 0], [1, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1], [0, 0, 1, 0]])
def test_the_best_path_is_the_best_of_all(pauses):
    """Every way through a few frames, counted out; beside a longer clip, whose states are none of
    its own."""
    rng = np.random.default_rng(len(pauses))
    pause_S = np.array(pauses, dtype=bool)
    score_TS = rng.normal(size=(7, len(pauses)))
    needed = set(np.flatnonzero(~pause_S))
    ways = [
        way for way in itertools.combinations_with_replacement(range(len(pauses)), len(score_TS)) if needed <= set(way)
    ]
    best = max(ways, key=lambda way: sum(score_TS[frame, state] for frame, state in enumerate(way)))
    path, _ = best_paths([score_TS, rng.normal(size=(12, 9))], [pause_S, np.zeros(9, dtype=bool)])
    assert tuple(path) == best


def test_noise_that_features_share_is_seen_through():
    """Phones differ in the first feature alone, in noise that the second has as well: the
    difference of the two tells them apart. Of all frames 0.996 were right here; 0.905 without the
    round that looks for such directions."""
    rng = np.random.default_rng(3)
    place = {SILENCE: -3.0, "A": -1.0, "B": 1.0, "C": 3.0}
    features, words, truth = [], [], []
    for _ in range(60):
        said = [str(name) for name in rng.permutation(["A", "B", "C"])]
        names = [name for name in (SILENCE, *said, SILENCE) for _ in range(rng.integers(4, 12))]
        shared = 1.5 * rng.normal(size=len(names))
        x = np.stack([[place[name] for name in names] + shared, shared], axis=1) + 0.2 * rng.normal(
            size=(len(names), 2)
        )
        features.append(x)
        words.append([said])
        truth.append(names)
    right = [
        found == name
        for own, names in zip(align(features, words, SPEECH), truth, strict=True)
        for found, name in zip(phones_at(own, SPEECH.centres(0, len(names))), names, strict=True)
    ]
    assert np.mean(right) > 0.97
