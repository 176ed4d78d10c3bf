"""Forced alignment of phone transcripts: monophones with one Gaussian each, flat start, Viterbi
training (Rabiner 1989), first on the features, then on linear discriminants of spliced frames
(Haeb-Umbach & Ney 1992).

T frames, S states of a clip, P phones, D features, B clips in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from sjepa.core.frames import FrameGeometry
from sjepa.evaluation.labels import Span

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SILENCE = "SIL"
_ITERATIONS = 12  # per kind of features
_VARIANCE_FLOOR = 0.05
_CONTEXT, _DIRECTIONS = 4, 30
_RIDGE = 1e-3  # relative to the mean within-phone variance
_LEAST_VARIANCE = 1e-6  # for constant features
_CELLS_AT_ONCE = 2_000_000  # clips × frames × states


class _Chain(NamedTuple):
    """The state sequence of a clip: phones, and optional pauses."""

    phone_S: Ints
    pause_S: NDArray[np.bool_]


def align(
    features: Sequence[Floats],
    words: Sequence[Sequence[Sequence[str]]],
    geometry: FrameGeometry,
    *,
    training: Sequence[bool] | None = None,
    seconds: Sequence[Floats] | None = None,
) -> list[list[Span]]:
    """Phone times of every clip, with optional pauses (SILENCE) at both ends and between words.

    `features` [T, D] have zero mean and unit deviation per clip; `words` are the phones of each
    word of the transcripts, at most T per clip; `training` marks the clips that the models are
    trained on (default: all); `seconds` [T] are the frame centres (default: those of a clip encoded
    as a whole).
    """
    names = sorted({phone for clip in words for word in clip for phone in word} | {SILENCE})
    chains = [_chain(clip, names) for clip in words]
    paths = [_flat_start(len(x_TD), chain) for x_TD, chain in zip(features, chains, strict=True)]
    chosen = [index for index in range(len(features)) if training is None or training[index]]
    if chosen:
        paths = _trained(features, chains, paths, chosen, len(names))
        telling = _telling_apart(features, chains, paths, chosen, len(names))
        paths = _trained(telling, chains, paths, chosen, len(names))
    hop_seconds = geometry.hop_samples / geometry.sample_rate
    times = seconds if seconds is not None else [geometry.centres(0, len(path)) for path in paths]
    return [
        _spans([names[phone] for phone in chain.phone_S], path, centres, hop_seconds)
        for chain, path, centres in zip(chains, paths, times, strict=True)
    ]


def _chain(words: Sequence[Sequence[str]], names: Sequence[str]) -> _Chain:
    spoken = [[SILENCE], *[part for word in words for part in (word, [SILENCE])]]
    phones = [phone for part in spoken for phone in part]
    pauses = [position % 2 == 0 for position, part in enumerate(spoken) for _ in part]
    return _Chain(np.array([names.index(phone) for phone in phones]), np.array(pauses))


def _flat_start(frames: int, chain: _Chain) -> Ints:
    """Uniform segmentation into all phones and the pauses at both ends."""
    taken = ~chain.pause_S
    taken[[0, -1]] = frames >= taken.sum() + 2
    states = np.flatnonzero(taken)
    return np.asarray(states[np.arange(frames) * len(states) // max(frames, 1)], dtype=np.int64)


def _trained(
    features: Sequence[Floats], chains: Sequence[_Chain], paths: list[Ints], chosen: Sequence[int], phones: int
) -> list[Ints]:
    """Viterbi training: alternates estimation of the Gaussians and realignment; returns the
    paths."""
    groups = _of_like_size(features, chains)
    for _ in range(_ITERATIONS):
        mean_PD, variance_PD = _estimate(features, chains, paths, chosen, phones)
        paths = list(paths)
        for group in groups:
            scores = [_log_likelihood(features[i], mean_PD, variance_PD)[:, chains[i].phone_S] for i in group]
            for index, path in zip(group, best_paths(scores, [chains[i].pause_S for i in group]), strict=True):
                paths[index] = path
    return paths


def _of_like_size(features: Sequence[Floats], chains: Sequence[_Chain]) -> list[list[int]]:
    """Batches of clips of similar length for the Viterbi search: at most `_CELLS_AT_ONCE` cells
    after padding, or a single clip."""
    groups: list[list[int]] = []
    frames = states = 0
    for index in sorted(range(len(features)), key=lambda index: len(features[index])):
        frames, states = max(frames, len(features[index])), max(states, len(chains[index].phone_S))
        if not groups or (len(groups[-1]) + 1) * frames * states > _CELLS_AT_ONCE:
            groups.append([])
            frames, states = len(features[index]), len(chains[index].phone_S)
        groups[-1].append(index)
    return groups


def _membership(chain: _Chain, path: Ints, phones: int) -> Floats:
    """One-hot phone of each frame, [P, T]."""
    return np.asarray(np.arange(phones)[:, None] == chain.phone_S[path], dtype=np.float64)


def _estimate(
    features: Sequence[Floats], chains: Sequence[_Chain], paths: Sequence[Ints], chosen: Sequence[int], phones: int
) -> tuple[Floats, Floats]:
    width = features[0].shape[1]
    count_P1, sum_PD, square_PD = np.full((phones, 1), 1e-3), np.zeros((phones, width)), np.zeros((phones, width))
    for index in chosen:
        own_PT, x_TD = _membership(chains[index], paths[index], phones), features[index]
        count_P1 = count_P1 + own_PT.sum(1, keepdims=True)
        sum_PD, square_PD = sum_PD + own_PT @ x_TD, square_PD + own_PT @ x_TD**2
    mean_PD = sum_PD / count_P1
    return mean_PD, np.maximum(square_PD / count_P1 - mean_PD**2, _VARIANCE_FLOOR)


def _spliced(x_TD: Floats) -> Floats:
    """Frames with their context; edge frames are repeated."""
    around = np.arange(len(x_TD))[:, None] + np.arange(-_CONTEXT, _CONTEXT + 1)
    return x_TD[np.clip(around, 0, len(x_TD) - 1)].reshape(len(x_TD), -1)


def _telling_apart(
    features: Sequence[Floats], chains: Sequence[_Chain], paths: Sequence[Ints], chosen: Sequence[int], phones: int
) -> list[Floats]:
    """Linear discriminant analysis of spliced frames: maximal between-phone variance at unit
    within-phone variance."""
    width = features[0].shape[1] * (2 * _CONTEXT + 1)
    count_P, sum_PD, square_DD = np.zeros(phones), np.zeros((phones, width)), np.zeros((width, width))
    for index in chosen:
        own_PT, x_TD = _membership(chains[index], paths[index], phones), _spliced(features[index])
        count_P, sum_PD, square_DD = count_P + own_PT.sum(1), sum_PD + own_PT @ x_TD, square_DD + x_TD.T @ x_TD
    total, middle_D = count_P.sum(), sum_PD.sum(0) / count_P.sum()
    mean_PD = sum_PD / np.maximum(count_P, 1)[:, None] - middle_D
    between_DD = mean_PD.T * count_P @ mean_PD / total
    within_DD = square_DD / total - np.outer(middle_D, middle_D) - between_DD
    within_DD += (_RIDGE * np.trace(within_DD) / width + _LEAST_VARIANCE) * np.eye(width)
    _, direction_DD = scipy.linalg.eigh(between_DD, within_DD, subset_by_index=(max(0, width - _DIRECTIONS), width - 1))
    return [(_spliced(x_TD) - middle_D) @ direction_DD for x_TD in features]


def _log_likelihood(x_TD: Floats, mean_PD: Floats, variance_PD: Floats) -> Floats:
    precision_PD = 1 / variance_PD
    constant_P = -0.5 * (np.log(variance_PD) + mean_PD**2 * precision_PD).sum(1)
    return np.asarray(constant_P - 0.5 * (x_TD**2) @ precision_PD.T + x_TD @ (mean_PD * precision_PD).T)


def best_paths(scores: Sequence[Floats], pauses: Sequence[NDArray[np.bool_]]) -> list[Ints]:
    """The Viterbi path of each clip: the state of every frame. `scores` [T, S] are
    log-likelihoods. A path stays in a state or moves to the next one, and may skip only states
    marked in `pauses` [S], no two of which are adjacent."""
    clips, frames, states = len(scores), max(map(len, scores)), max(map(len, pauses))
    score_TBS = np.full((frames, clips, states), -np.inf)
    skip_BS = np.zeros((clips, states), dtype=bool)  # whether the state before this one can be skipped
    for clip, (score_TS, pause_S) in enumerate(zip(scores, pauses, strict=True)):
        score_TBS[: len(score_TS), clip, : len(pause_S)] = score_TS
        skip_BS[clip, 2 : len(pause_S)] = pause_S[1:-1]
    step_TBS = np.zeros((frames, clips, states), dtype=np.int8)
    best_BS = np.full((clips, states), -np.inf)
    best_BS[:, 0] = score_TBS[0, :, 0]
    opens_B = np.array([len(pause_S) > 1 and pause_S[0] for pause_S in pauses])
    best_BS[opens_B, 1] = score_TBS[0, opens_B, 1]
    ends_B, last_BS = np.array([len(score_TS) - 1 for score_TS in scores]), best_BS.copy()
    for frame in range(1, frames):
        before_3BS = np.full((3, clips, states), -np.inf)
        before_3BS[0] = best_BS
        before_3BS[1, :, 1:] = best_BS[:, :-1]
        before_3BS[2, :, 2:] = np.where(skip_BS[:, 2:], best_BS[:, :-2], -np.inf)
        step_TBS[frame] = before_3BS.argmax(0)
        best_BS = before_3BS.max(0) + score_TBS[frame]
        last_BS[ends_B == frame] = best_BS[ends_B == frame]
    return [
        _way_back(last_BS[clip, : len(pause_S)], step_TBS[: len(score_TS), clip], bool(pause_S[-1]))
        for clip, (score_TS, pause_S) in enumerate(zip(scores, pauses, strict=True))
    ]


def _way_back(last_S: Floats, step_TS: NDArray[np.int8], ends_in_pause: bool) -> Ints:
    state = len(last_S) - 1
    if ends_in_pause and state and last_S[state - 1] > last_S[state]:
        state -= 1
    path = np.zeros(len(step_TS), dtype=np.int64)
    for frame in range(len(step_TS) - 1, -1, -1):
        path[frame] = state
        state -= int(step_TS[frame, state])
    return path


def _spans(names: Sequence[str], path: Ints, centres: Floats, hop_seconds: float) -> list[Span]:
    """Time of each state in seconds: from half a hop before its first frame centre to half a hop
    after its last."""
    half = hop_seconds / 2
    first = np.flatnonzero(np.diff(path, prepend=-1))
    last = np.append(first[1:], len(path)) - 1
    return [
        Span(names[path[start]], float(centres[start]) - half, float(centres[end]) + half)
        for start, end in zip(first, last, strict=True)
    ]
