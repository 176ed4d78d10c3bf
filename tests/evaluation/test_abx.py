"""Oracles: librosa's dynamic time warping; fastabx, where it installs (Python 3.12 and later)."""

import librosa
import numpy as np
import pytest

from sjepa.evaluation.abx import distances, draw_triples, error_rates, token_frames, triphones, warped
from sjepa.evaluation.labels import spans_of


def test_warping_equals_librosas():
    rng = np.random.default_rng(0)
    lengths, others = rng.integers(1, 12, 40), rng.integers(1, 15, 40)
    cost = np.zeros((40, 11, 14), np.float32)
    expected = []
    for row, (one, other) in enumerate(zip(lengths, others, strict=True)):
        cost[row, :one, :other] = rng.random((one, other))
        total, path = librosa.sequence.dtw(C=cost[row, :one, :other].astype(np.float64))
        expected.append(total[-1, -1] / len(path))
    assert np.allclose(warped(cost, lengths, others), expected, rtol=1e-6)


def test_distances_are_angles_and_do_not_depend_on_the_company():
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(length, 6)).astype(np.float32) for length in (3, 7, 4, 5)]
    pairs = np.array([[0, 1], [2, 3], [0, 0], [1, 2], [0, 1]])
    found = distances(frames, pairs)
    assert found[2] < 1e-3  # a token and itself: the angle of rounding
    assert found[0] == found[4]
    for (one, other), value in zip(pairs, found, strict=True):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (frames[one], frames[other])]
        total, path = librosa.sequence.dtw(C=np.arccos(np.clip(unit[0] @ unit[1].T, -1, 1)).astype(np.float64) / np.pi)
        assert value == pytest.approx(total[-1, -1] / len(path), abs=1e-5)
    louder = [frames[0] * 9, *frames[1:]]
    assert np.allclose(distances(louder, pairs), found, atol=1e-3)


def test_triphones_leave_out_silence_gaps_and_what_is_too_long():
    spans = spans_of("SIL:0-0.1 B:0.1-0.2 AH:0.2-0.3 T:0.3-0.4 S:0.4-0.5 K:0.6-0.7 AA:0.7-0.8 R:0.8-2.5")
    found = [(token.before, token.phone, token.after) for token in triphones(3, "s", spans)]
    assert found == [("B", "AH", "T"), ("AH", "T", "S")]
    token = triphones(3, "s", spans)[0]
    assert (token.clip, token.speaker, token.start, token.end) == (3, "s", 0.1, 0.4)


def corpus(seed=0, noise=0.3, spread=1.0):
    """Three speakers who say b-a-t and b-o-t, several times each, frames around a place of each
    phone, moved by speaker."""
    rng = np.random.default_rng(seed)
    place = {phone: rng.normal(size=8) for phone in "baot"}
    tokens, frames, seconds = [], {}, []
    for clip in range(24):
        speaker, middle = f"s{clip % 3}", "ao"[clip // 3 % 2]
        spans = spans_of(f"b:0-0.1 {middle}:0.1-0.24 t:0.24-0.34")
        tokens += triphones(clip, speaker, spans)
        times = 0.0125 + 0.02 * np.arange(17)
        moved = spread * np.random.default_rng(clip % 3).normal(size=8)
        rows = [place["b" if time < 0.1 else middle if time < 0.24 else "t"] + moved for time in times]
        frames[clip] = (np.array(rows) + noise * rng.normal(size=(17, 8))).astype(np.float32)
        seconds.append(times)
    return tokens, token_frames(tokens, frames, seconds)


def test_what_can_be_told_apart_has_no_errors_and_noise_is_chance():
    tokens, frames = corpus(noise=0.01)
    triples = draw_triples(tokens, "within", seed=0)
    assert len(triples.a_N) == 3 * 2 * 4 * 4 * 3  # speakers, orders, A, B, X that is not A
    assert error_rates(triples, frames).mean() == 0
    rng = np.random.default_rng(1)
    same = [rng.normal(size=own.shape).astype(np.float32) for own in frames]
    assert 0.35 < error_rates(triples, same).mean() < 0.65


def test_x_is_of_another_speaker_across_and_of_the_same_within():
    tokens, _ = corpus()
    for kind, alike in (("within", True), ("across", False)):
        triples = draw_triples(tokens, kind, seed=0)
        a, b, x = ([tokens[i] for i in column] for column in (triples.a_N, triples.b_N, triples.x_N))
        assert len(a) > 0
        for one, other, third in zip(a, b, x, strict=True):
            assert one.speaker == other.speaker
            assert (third.speaker == one.speaker) is alike
            assert third.phone == one.phone != other.phone


def test_speakers_count_alike_and_weights_choose_between_them():
    """One is told apart without an error, of another there is only noise."""
    tokens, frames = corpus(noise=0.01)
    rng = np.random.default_rng(3)
    spoilt = [
        rng.normal(size=own.shape).astype(np.float32) if token.speaker == "s1" else own
        for token, own in zip(tokens, frames, strict=True)
        if token.speaker != "s2"
    ]
    own = [token for token in tokens if token.speaker != "s2"]
    errors = error_rates(draw_triples(own, "within", seed=0), spoilt)
    assert errors.speakers == ("s0", "s1")
    first, second = (errors.mean(np.array(weights)) for weights in ([1.0, 0.0], [0.0, 1.0]))
    assert first == 0
    assert second > 0.2
    assert errors.mean() == pytest.approx((first + second) / 2)


def test_the_same_seed_gives_the_same_triples():
    tokens, _ = corpus()
    one, two, other = (draw_triples(tokens * 3, "across", seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.x_N, two.x_N)
    assert not np.array_equal(one.x_N, other.x_N)


@pytest.mark.parametrize("kind", ["within", "across"])
def test_the_error_equals_fastabx(kind, tmp_path):
    fastabx = pytest.importorskip("fastabx")
    import torch

    tokens, frames = corpus(noise=1.5)
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number, (token, own) in enumerate(zip(tokens, frames, strict=True)):
        torch.save(torch.from_numpy(own), tmp_path / f"f{number}.pt")
        end = 0.02 * len(own) + 0.005
        lines.append(f"f{number} 0.0 {end:.4f} {token.phone} {token.before} {token.after} {token.speaker}")
    (tmp_path / "x.item").write_text("\n".join(lines) + "\n")
    expected = fastabx.zerospeech_abx(
        tmp_path / "x.item",
        tmp_path,
        max_size_group=None,
        max_x_across=None,
        speaker=kind,
        context="within",
        frequency=50,
    )
    found = error_rates(draw_triples(tokens, kind, seed=0), frames).mean()
    assert found == pytest.approx(expected, abs=1e-6 if kind == "within" else 0.05)  # across, X is drawn
