"""Collective operations between the ranks of a run. N rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sjepa.core.errors import ToldByMain

T = TypeVar("T")


class Ranks:
    """Process `rank` of `size`; collectives run on `device`. All ranks must call the same methods
    in the same order. `ALONE` is the single-process case: collectives return their input."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self._device = device or torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files and logs and plots."""
        return self.rank == 0

    def add_up(self, *tensors: Tensor) -> None:
        """All-reduces (sums) the tensors in place; tensors of one dtype share one call."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in same]).to(self._device)
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self._device)
        self.add_up(raised)
        return bool(raised)

    def rows(self, rows: Tensor, *, most: int | None = None) -> Tensor:
        """All-gathers rows [N, …] in rank order, at most `most`; N may differ or be 0."""
        if self.size == 1:
            return rows[:most]
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        self.add_up(counts)
        start, total = int(counts[: self.rank].sum()), int(counts.sum())
        total = total if most is None else min(total, most)
        own = rows[: max(0, total - start)]
        every = rows.new_zeros(total, *rows.shape[1:])
        every[start : start + len(own)] = own
        self.add_up(every)
        return every

    def stack(self, tensor: Tensor) -> Tensor:
        """Gathers tensors of one shape from all ranks, stacked along a new first axis."""
        stacked = tensor.new_zeros(self.size, *tensor.shape)
        stacked[self.rank] = tensor
        self.add_up(stacked)
        return stacked

    def each(self, item: T) -> list[T]:
        """Gathers small picklable objects from all ranks, in rank order."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def from_main(self, item: T) -> T:
        """Broadcasts `item` from rank 0."""
        if self.size == 1:
            return item
        found = [item]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """Result of `work`, run on rank 0 first and then on the other ranks, which find the files
        that rank 0 wrote. If rank 0 fails, the other ranks raise ToldByMain."""
        if not self.is_main:
            if not self.from_main(True):
                raise ToldByMain
            return work()
        try:
            done = work()
        except BaseException:
            self.from_main(False)
            raise
        self.from_main(True)
        return done

    def only_main(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 only and broadcasts its result. If it fails, the other ranks raise
        ToldByMain."""
        done = self.main_first(lambda: work() if self.is_main else None)
        return self.from_main(done)  # type: ignore[return-value]


ALONE = Ranks()
