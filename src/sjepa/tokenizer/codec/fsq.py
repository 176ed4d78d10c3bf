"""Finite scalar quantisation (Mentzer et al. 2023), and tokens, each of which holds the codes of a
group of dimensions. T frames, D dimensions, G groups; leading dimensions are free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sjepa.core.tensors import to_device

_LARGEST = 2**31 - 1  # tokens are int32


@dataclass(frozen=True)
class FSQ:
    """`levels` of contiguous parts of the `width` dimensions (of equal size, the first ones perhaps
    one larger); tokens of `group` dimensions. No parameters.

    Raises ValueError if a level is below 2, if there are more levels than dimensions, or if a token
    does not fit 32 bits.
    """

    width: int
    levels: tuple[int, ...] = (4, 4, 4, 4)
    group: int = 7

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= self.width:
            raise ValueError(f"levels: {len(self.levels)} values for {self.width} dimensions")
        if min(self.levels) < 2:
            raise ValueError(f"levels: {min(self.levels)} is below 2")
        if self.group < 1:
            raise ValueError(f"group: {self.group} is below 1")
        if max(self.vocabulary) > _LARGEST:
            raise ValueError(
                f"group: {self.group} dimensions give {max(self.vocabulary):,} tokens, more than 32 bits hold"
            )

    @cached_property
    def levels_of_dimensions(self) -> tuple[int, ...]:
        """[D]."""
        size, larger = divmod(self.width, len(self.levels))
        return tuple(level for part, level in enumerate(self.levels) for _ in range(size + (part < larger)))

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The levels of every group's dimensions, [G]; the last group may have fewer."""
        levels = self.levels_of_dimensions
        return tuple(levels[start : start + self.group] for start in range(0, self.width, self.group))

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of different tokens of every group, [G]."""
        return tuple(math.prod(group) for group in self.groups)

    @property
    def bits_per_frame(self) -> float:
        """Of a code for every dimension, all equally likely."""
        return sum(math.log2(level) for level in self.levels_of_dimensions)

    def describe(self, frames_per_second: float) -> str:
        """Tokens per frame and second, vocabulary, bits per second."""
        sizes = sorted(set(self.vocabulary), reverse=True)
        count = len(self.groups)
        rates = f"{count * frames_per_second:g} tokens/s, {self.bits_per_frame * frames_per_second:,.0f} bit/s"
        return f"{count} tokens a frame, vocabulary {' and '.join(f'{size:,}' for size in sizes)}, {rates}"

    def _steps(self, like: Tensor) -> Tensor:
        """Levels − 1 of every dimension, [D]."""
        return to_device([level - 1 for level in self.levels_of_dimensions], like.device).float()

    def codes(self, features_TD: Tensor) -> Tensor:
        """int64, 0 to the level − 1: the nearest of that many evenly spaced values in −1…1 to
        tanh(features)."""
        steps_D = self._steps(features_TD)
        return ((torch.tanh(features_TD.float()) + 1) / 2 * steps_D).round().long()

    def values(self, codes_TD: Tensor) -> Tensor:
        """The values in −1…1 that codes stand for, float32."""
        return codes_TD / self._steps(codes_TD) * 2 - 1

    def quantised(self, features_TD: Tensor) -> Tensor:
        """The values of the codes of `features_TD`; the gradient is that of tanh, as if nothing had
        been rounded (straight-through)."""
        bounded_TD = torch.tanh(features_TD.float())
        return bounded_TD + (self.values(self.codes(features_TD)) - bounded_TD).detach()

    def pack(self, codes_TD: Tensor) -> Tensor:
        """Tokens, int32 [T, G]: mixed-radix numbers of the codes of a group, the first dimension
        the least significant digit."""
        tokens, start = [], 0
        for group in self.groups:
            weights = torch.tensor([math.prod(group[:index]) for index in range(len(group))], device=codes_TD.device)
            tokens.append((codes_TD[..., start : start + len(group)] * weights).sum(-1))
            start += len(group)
        return torch.stack(tokens, -1).to(torch.int32)

    def unpack(self, tokens_TG: Tensor) -> Tensor:
        """The codes, int64 [T, D], of tokens. Raises ValueError if there are more or fewer groups,
        or a token is outside its vocabulary."""
        if tokens_TG.shape[-1] != len(self.groups):
            raise ValueError(f"{tokens_TG.shape[-1]} tokens a frame instead of {len(self.groups)}")
        for number, size in enumerate(self.vocabulary):
            own = tokens_TG[..., number]
            if own.numel() and not (int(own.min()) >= 0 and int(own.max()) < size):
                raise ValueError(
                    f"group {number}: tokens from {int(own.min())} to {int(own.max())}, not 0 to {size - 1}"
                )
        return self.digits(tokens_TG)

    def digits(self, tokens_TG: Tensor) -> Tensor:
        """Like `unpack`, unchecked."""
        codes = []
        for number, group in enumerate(self.groups):
            rest = tokens_TG[..., number].long()
            for level in group:
                codes.append(rest % level)
                rest = rest // level
        return torch.stack(codes, -1)
