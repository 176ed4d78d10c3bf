"""Recognition probes: CTC heads on frozen features (Graves et al. 2006). T frames, L layers, D
features, V symbols plus the blank (symbol 0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sjepa.core.random import generator, key
from sjepa.evaluation.classifiers import MIX_RATE, LayerMix, parameter_groups

Head = Literal["linear", "bilstm"]
Symbols = tuple[int, ...]

_BLANK = 0
_LSTM_WIDTH, _LSTM_LAYERS = 128, 2
_RATES: dict[Head, float] = {"linear": 5e-3, "bilstm": 2e-3}
_LARGEST_NORM = 5.0
_LEAST_LOG = -12.0  # less likely symbols are pruned in beam search


@dataclass(frozen=True)
class Transcribed:
    """Features [T, L, D] of a clip and its symbols, numbered from 1."""

    features_TLD: Tensor
    symbols: Symbols


class BiLSTM(nn.Module):
    """Two-layer bidirectional LSTM that ignores padding. Packed sequences give the same result
    at a fifth of the speed on CPU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, *[2 * _LSTM_WIDTH] * (_LSTM_LAYERS - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(size, _LSTM_WIDTH, batch_first=True) for size in widths)
        self.backwards = nn.ModuleList(nn.LSTM(size, _LSTM_WIDTH, batch_first=True) for size in widths)

    def forward(self, x_BTD: Tensor, length_B: Tensor) -> Tensor:
        """[B, T, D] → [B, T, 2 × 128]; padding does not affect a clip's frames."""
        step_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        last_B1 = length_B[:, None] - 1
        turned_BT = torch.where(step_T <= last_B1, last_B1 - step_T, step_T)
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            x_BTD = torch.cat([ahead(x_BTD)[0], _taken(back(_taken(x_BTD, turned_BT))[0], turned_BT)], dim=-1)
        return x_BTD


def _taken(x_BTD: Tensor, index_BT: Tensor) -> Tensor:
    return x_BTD.gather(1, index_BT[..., None].expand(-1, -1, x_BTD.shape[2]))


class CTCHead(nn.Module):
    """Layer mix, optional BiLSTM, linear output."""

    def __init__(self, mix: LayerMix, num_symbols: int, kind: Head) -> None:
        super().__init__()
        self.mix = mix
        self.lstm = BiLSTM(mix.width) if kind == "bilstm" else None
        self.linear = nn.Linear(mix.width if self.lstm is None else 2 * _LSTM_WIDTH, num_symbols + 1)

    def forward(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Log posteriors [T, V + 1] of each clip [T, L, D]."""
        lengths = [len(clip) for clip in clips]
        x_ND = self.mix(torch.cat(list(clips)))
        if self.lstm is not None:
            padded_BTD = pad_sequence(list(x_ND.split(lengths)), batch_first=True)
            out_BTD = self.lstm(padded_BTD, torch.tensor(lengths, device=x_ND.device))
            x_ND = torch.cat([row[:length] for row, length in zip(out_BTD, lengths, strict=True)])
        return list(F.log_softmax(self.linear(x_ND), dim=1).split(lengths))


def train_head(
    kind: Head,
    train: Sequence[Transcribed],
    *,
    num_symbols: int,
    seed: int,
    steps: int = 1000,
    batch_clips: int = 16,
    lr: float | None = None,
) -> Callable[[Tensor], Tensor]:
    """Trains a CTC head on `train`; returns a function from features [T, L, D] to log posteriors
    [T, V + 1].

    Clips with too few frames for their transcript are skipped. Raises ValueError if none is left.
    """
    fitting = [clip for clip in train if clip.symbols and len(clip.features_TLD) >= _frames_needed(clip.symbols)]
    if not fitting:
        raise ValueError("no clip is long enough for its transcript")
    device = fitting[0].features_TLD.device
    torch.manual_seed(key(seed, "probe"))
    mix = LayerMix([clip.features_TLD for clip in fitting])
    head = CTCHead(mix, num_symbols, kind).to(device)
    rate = lr or _RATES[kind]
    optimizer = torch.optim.Adam(parameter_groups(head, mix, rate))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[rate, MIX_RATE], total_steps=steps)
    for clips in _batches(fitting, steps, batch_clips, seed):
        optimizer.zero_grad()
        _ctc_loss(head([clip.features_TLD for clip in clips]), clips).backward()
        nn.utils.clip_grad_norm_(head.parameters(), _LARGEST_NORM)
        optimizer.step()
        schedule.step()
    head.eval()

    @torch.no_grad()
    def posteriors(features_TLD: Tensor) -> Tensor:
        return head([features_TLD])[0]

    return posteriors


def _batches(clips: Sequence[Transcribed], count: int, size: int, seed: int) -> Iterator[list[Transcribed]]:
    """`count` batches; clips are reshuffled every epoch."""
    order: list[int] = []
    for epoch in range(count):
        order += generator(seed, "probe order", epoch).permutation(len(clips)).tolist() if len(order) < size else []
        yield [clips[index] for index in order[:size]]
        order = order[size:]


def greedy(log_posteriors_TV: Tensor) -> Symbols:
    """Greedy decoding: most likely symbol of each frame, repeats merged, blanks removed."""
    best = torch.unique_consecutive(log_posteriors_TV.argmax(1)).tolist()
    return tuple(symbol for symbol in best if symbol != _BLANK)


def beam_search(log_posteriors_TV: Tensor, *, width: int) -> Symbols:
    """Most likely sequence by prefix beam search with `width` hypotheses, summed over
    alignments, without a language model (Hannun et al. 2014)."""
    # per prefix: log probability of paths ending in a blank, and in its last symbol
    beam: dict[Symbols, tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in log_posteriors_TV.tolist():
        likely = [symbol for symbol in range(1, len(row)) if row[symbol] > _LEAST_LOG]
        grown: dict[Symbols, tuple[float, float]] = {}

        def add(prefix: Symbols, blank: float, symbol: float, into: dict[Symbols, tuple[float, float]] = grown) -> None:
            old_blank, old_symbol = into.get(prefix, (-math.inf, -math.inf))
            into[prefix] = (_log_sum(old_blank, blank), _log_sum(old_symbol, symbol))

        for prefix, (blank, last) in beam.items():
            both = _log_sum(blank, last)
            add(prefix, both + row[_BLANK], last + row[prefix[-1]] if prefix else -math.inf)
            for symbol in likely:
                before = blank if prefix and prefix[-1] == symbol else both
                add((*prefix, symbol), -math.inf, before + row[symbol])
        best = sorted(grown.items(), key=lambda item: -_log_sum(*item[1]))
        beam = dict(best[:width])
    return max(beam, key=lambda prefix: _log_sum(*beam[prefix]))


def _log_sum(a: float, b: float) -> float:
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _frames_needed(symbols: Sequence[int]) -> int:
    """Minimum number of frames for CTC: repeated symbols need a blank between them."""
    return len(symbols) + sum(a == b for a, b in pairwise(symbols))


def _ctc_loss(log_posteriors: list[Tensor], clips: Sequence[Transcribed]) -> Tensor:
    device = log_posteriors[0].device
    symbols = torch.tensor([symbol for clip in clips for symbol in clip.symbols], device=device)
    return F.ctc_loss(
        pad_sequence(log_posteriors),
        symbols,
        torch.tensor([len(rows) for rows in log_posteriors], device=device),
        torch.tensor([len(clip.symbols) for clip in clips], device=device),
        blank=_BLANK,
    )
