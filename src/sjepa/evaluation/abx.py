"""ABX phone discriminability: given tokens A and B of two phones in the same context, is X, another
token of A's phone, closer to A than to B? (Schatz et al. 2013; the ZeroSpeech challenges.) Needs no
training.

Tokens are triphones. A and B are from one speaker and differ only in the middle phone; X has A's
phones and is from the same speaker (within) or another one (across). The distance of two tokens is
the mean angle between frames along the best path of dynamic time warping. Errors are averaged over
the triples of a cell, over contexts, over speakers, and then over pairs of phones.

T frames, D features, N pairs of tokens, P pairs of phones, S speakers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sjepa.core.random import generator
from sjepa.evaluation.labels import SILENCES, Span

Floats = NDArray[np.float32]
Kind = Literal["within", "across"]
KINDS: tuple[Kind, ...] = ("within", "across")

_MOST_OF_A_KIND = 5  # tokens per triphone and speaker, sampled by seed
_MOST_OTHERS = 5  # tokens X of other speakers per pair (A, B), likewise
_PAIRS_AT_ONCE = 4000
_LONGEST_SECONDS = 1.0  # of a triphone; longer ones are alignment errors


class Token(NamedTuple):
    """A triphone spoken by `speaker` from `start` to `end` (seconds) in a clip."""

    before: str
    phone: str
    after: str
    speaker: str
    clip: int
    start: float
    end: float


class Triples(NamedTuple):
    """Positions of A, B and X among the tokens, [N] each, and the cell of each: (A's phone, B's
    phone, context, speaker)."""

    a_N: NDArray[np.int64]
    b_N: NDArray[np.int64]
    x_N: NDArray[np.int64]
    cells: list[tuple[str, str, tuple[str, str], str]]


def triphones(clip: int, speaker: str, spans: Sequence[Span]) -> list[Token]:
    """The tokens of a clip, without those next to silence, with gaps, or too long."""
    found = []
    for before, own, after in zip(spans, spans[1:], spans[2:], strict=False):
        whole = before.end >= own.start - 1e-3 and own.end >= after.start - 1e-3
        spoken = SILENCES.isdisjoint((before.phone, own.phone, after.phone))
        if whole and spoken and after.end - before.start <= _LONGEST_SECONDS:
            found.append(Token(before.phone, own.phone, after.phone, speaker, clip, before.start, after.end))
    return found


def draw_triples(tokens: Sequence[Token], kind: Kind, *, seed: int) -> Triples:
    """All triples; tokens beyond the limits are subsampled by seed."""
    draws = generator(seed, "abx", kind)
    said: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for position, token in enumerate(tokens):
        said[token.before, token.after][token.speaker].setdefault(token.phone, []).append(position)
    rows: list[tuple[int, int, int]] = []
    cells = []
    for context in sorted(said):
        speakers = said[context]
        for speaker in sorted(speakers):
            own = {phone: _some(positions, _MOST_OF_A_KIND, draws) for phone, positions in speakers[speaker].items()}
            for phone, other in ((phone, other) for phone in own for other in own if phone != other):
                xs = own[phone] if kind == "within" else _of_others(speakers, speaker, phone)
                for a in own[phone]:
                    for b in own[other]:
                        chosen = xs if kind == "within" else _some(xs, _MOST_OTHERS, draws)
                        new = [(a, b, x) for x in chosen if x != a]
                        rows += new
                        cells += [(phone, other, context, speaker)] * len(new)
    a_N, b_N, x_N = np.array(rows, np.int64).reshape(-1, 3).T
    return Triples(a_N, b_N, x_N, cells)


def _of_others(speakers: Mapping[str, Mapping[str, Sequence[int]]], speaker: str, phone: str) -> list[int]:
    return [position for name in sorted(speakers) if name != speaker for position in speakers[name].get(phone, ())]


def _some(positions: Sequence[int], most: int, draws: np.random.Generator) -> list[int]:
    if len(positions) <= most:
        return list(positions)
    return [positions[index] for index in np.sort(draws.choice(len(positions), most, replace=False))]


class Errors(NamedTuple):
    """Error rates of pairs of phones by speaker [P, S], NaN where a speaker has no such pair."""

    rate_PS: NDArray[np.float64]
    speakers: tuple[str, ...]

    @property
    def present(self) -> NDArray[np.bool_]:
        """The speakers that have some pair, [S]."""
        return np.any(~np.isnan(self.rate_PS), axis=0)

    def mean(self, weight_S: NDArray[np.float64] | None = None) -> float:
        """Mean over speakers (weighted, for a bootstrap), then over pairs; NaN if there are no
        triples."""
        weight_PS = np.where(np.isnan(self.rate_PS), 0.0, 1.0 if weight_S is None else weight_S)
        total_P = weight_PS.sum(1)
        judged = total_P > 0
        if not judged.any():
            return float("nan")
        return float(((np.nan_to_num(self.rate_PS) * weight_PS).sum(1)[judged] / total_P[judged]).mean())


def error_rates(triples: Triples, frames: Sequence[Floats]) -> Errors:
    """ABX error rates; `frames` are [T, D] for every token."""
    from_a, from_b = (
        distances(frames, np.stack([other_N, triples.x_N], axis=1)) for other_N in (triples.a_N, triples.b_N)
    )
    wrong_N = (from_a > from_b) + 0.5 * (from_a == from_b)
    return Errors(*_collapsed(triples.cells, wrong_N))


def _collapsed(
    cells: Sequence[tuple[str, str, tuple[str, str], str]], wrong_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    in_cell: dict[tuple[str, str, tuple[str, str], str], list[float]] = defaultdict(list)
    for cell, wrong in zip(cells, wrong_N.tolist(), strict=True):
        in_cell[cell].append(wrong)
    of_speaker: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (phone, other, _, speaker), values in in_cell.items():
        of_speaker[phone, other][speaker].append(float(np.mean(values)))
    speakers = tuple(sorted({cell[3] for cell in in_cell}))
    rate_PS = np.full((len(of_speaker), len(speakers)), np.nan)
    for row, by_speaker in enumerate(of_speaker.values()):
        for speaker, values in by_speaker.items():
            rate_PS[row, speakers.index(speaker)] = np.mean(values)
    return rate_PS, speakers


def distances(frames: Sequence[Floats], pair_N2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of each pair of tokens: mean angle (in units of π) along the best DTW path."""
    unique_M2, inverse_N = np.unique(pair_N2, axis=0, return_inverse=True)
    unit = [_unit(own) for own in frames]
    count = np.array([len(own) for own in frames])
    order_M = np.lexsort((count[unique_M2[:, 1]], count[unique_M2[:, 0]]))
    found_M = np.empty(len(unique_M2))
    for start in range(0, len(order_M), _PAIRS_AT_ONCE):
        chosen = order_M[start : start + _PAIRS_AT_ONCE]
        first, second = unique_M2[chosen].T
        angle = np.zeros((len(chosen), count[first].max(), count[second].max()), np.float32)
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            cosine = np.clip(unit[one] @ unit[other].T, -1, 1)
            angle[row, : cosine.shape[0], : cosine.shape[1]] = np.arccos(cosine) / np.pi
        found_M[chosen] = warped(angle, count[first], count[second])
    return found_M[inverse_N.reshape(-1)]


def warped(cost_NTU: Floats, length_N: NDArray[np.int64], other_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Batched dynamic time warping: cost of the best path divided by its number of steps, each
    of which advances in either token or in both. Pair n has the first `length_N[n]` rows and
    `other_N[n]` columns."""
    count, rows, columns = cost_NTU.shape
    cost_TUN = np.moveaxis(cost_NTU, 0, -1).astype(np.float64)
    best = np.full((rows + 1, columns + 1, count), np.inf)
    steps = np.zeros((rows + 1, columns + 1, count))
    best[0, 0] = 0
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            came = [(row - 1, column - 1), (row, column - 1), (row - 1, column)]
            before_3N = np.stack([best[place] for place in came])
            chosen_1N = before_3N.argmin(0)[None]
            best[row, column] = cost_TUN[row - 1, column - 1] + np.take_along_axis(before_3N, chosen_1N, 0)[0]
            taken_3N = np.stack([steps[place] for place in came])
            steps[row, column] = 1 + np.take_along_axis(taken_3N, chosen_1N, 0)[0]
    each = np.arange(count)
    return np.asarray(best[length_N, other_N, each] / steps[length_N, other_N, each])


def token_frames(
    tokens: Iterable[Token], frames: Mapping[int, Floats], seconds: Sequence[NDArray[np.float64]]
) -> list[Floats]:
    """The frames of every token: those whose centre lies within it, at least the nearest one."""
    found = []
    for token in tokens:
        first, end = np.searchsorted(seconds[token.clip], [token.start, token.end])
        first = min(first, len(seconds[token.clip]) - 1)
        found.append(frames[token.clip][first : max(end, first + 1)])
    return found


def _unit(frames_TD: Floats) -> Floats:
    return np.asarray(frames_TD / np.maximum(np.linalg.norm(frames_TD, axis=1, keepdims=True), 1e-12))
