"""Where the phones of a transcript are: monophones of one Gaussian each, flat start, Viterbi training (Rabiner 1989).

T frames, S states of a clip, P phones, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sjepa.core.frames import SPEECH
from sjepa.evaluation.labels import Span, frame_centres

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SILENCE = "SIL"
_ITERATIONS = 12
_FLOOR = 0.05


def align(
    features: Sequence[Floats],
    phones: Sequence[Sequence[str]],
    training: Sequence[bool] | None = None,
    seconds: Sequence[Floats] | None = None,
) -> list[list[Span]]:
    """The times of the phones of every clip, silence at both ends. `features` [T, D] have zero mean and unit deviation per
    clip; `phones` are the transcripts, each of at most T − 2; the models are trained on the clips that `training` marks
    (default: all); `seconds` [T] is the middle of every frame (default: those of a clip in one piece)."""
    names = sorted({phone for clip in phones for phone in clip} | {SILENCE})
    states = [np.array([names.index(phone) for phone in (SILENCE, *clip, SILENCE)]) for clip in phones]
    paths = [_uniform(len(x_TD), len(clip)) for x_TD, clip in zip(features, states, strict=True)]
    chosen = [index for index in range(len(features)) if training is None or training[index]]
    for _ in range(_ITERATIONS):
        mean_PD, variance_PD = _estimate(features, states, paths, chosen, len(names))
        paths = [
            _viterbi(_log_likelihood(x_TD, mean_PD[clip], variance_PD[clip]))
            for x_TD, clip in zip(features, states, strict=True)
        ]
    times = seconds if seconds is not None else [frame_centres(0, len(path)) for path in paths]
    return [
        _spans([names[state] for state in clip], path, centres)
        for clip, path, centres in zip(states, paths, times, strict=True)
    ]


def _spans(names: Sequence[str], path: Ints, centres: Floats) -> list[Span]:
    """From halfway before a state's first frame to halfway after its last one, seconds."""
    half = SPEECH.hop_samples / SPEECH.sample_rate / 2
    first = np.flatnonzero(np.diff(path, prepend=-1))
    last = np.append(first[1:], len(path)) - 1
    return [
        Span(names[path[start]], float(centres[start]) - half, float(centres[end]) + half)
        for start, end in zip(first, last, strict=True)
    ]


def _uniform(frames: int, states: int) -> Ints:
    return np.minimum(np.arange(frames) * states // max(frames, 1), states - 1)


def _estimate(
    features: Sequence[Floats], states: Sequence[Ints], paths: Sequence[Ints], chosen: Sequence[int], phones: int
) -> tuple[Floats, Floats]:
    x_ND = np.concatenate([features[index] for index in chosen])
    phone_N = np.concatenate([states[index][paths[index]] for index in chosen])
    count_P1 = np.bincount(phone_N, minlength=phones)[:, None] + 1e-3
    mean_PD, square_PD = np.zeros((phones, x_ND.shape[1])), np.zeros((phones, x_ND.shape[1]))
    np.add.at(mean_PD, phone_N, x_ND)
    np.add.at(square_PD, phone_N, x_ND**2)
    mean_PD /= count_P1
    return mean_PD, np.maximum(square_PD / count_P1 - mean_PD**2, _FLOOR)


def _log_likelihood(x_TD: Floats, mean_SD: Floats, variance_SD: Floats) -> Floats:
    precision_SD = 1 / variance_SD
    constant_S = -0.5 * (np.log(variance_SD) + mean_SD**2 * precision_SD).sum(1)
    return np.asarray(constant_S - 0.5 * (x_TD**2) @ precision_SD.T + x_TD @ (mean_SD * precision_SD).T)


def _viterbi(score_TS: Floats) -> Ints:
    """The best path from the first state to the last that stays or moves on by one."""
    frames, states = score_TS.shape
    best_S = np.full(states, -np.inf)
    best_S[0] = score_TS[0, 0]
    moved_TS = np.zeros((frames, states), dtype=bool)
    for frame in range(1, frames):
        from_before_S = np.concatenate([[-np.inf], best_S[:-1]])
        moved_TS[frame] = from_before_S > best_S
        best_S = np.maximum(best_S, from_before_S) + score_TS[frame]
    path = np.zeros(frames, dtype=np.int64)
    state = states - 1
    for frame in range(frames - 1, -1, -1):
        path[frame] = state
        state -= bool(moved_TS[frame, state]) and state > 0
    return path
