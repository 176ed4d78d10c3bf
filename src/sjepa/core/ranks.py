"""The processes that train together, and what passes between them. N rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sjepa.core.errors import ToldByMain

T = TypeVar("T")


class Ranks:
    """`rank` is one of `size` processes; what they exchange passes through `device`. All of them must call the same methods
    in the same order. `ALONE`, every method gives back what it was given."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self._device = device or torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes, logs and draws."""
        return self.rank == 0

    def add_up(self, *tensors: Tensor) -> None:
        """Replaces every tensor by its sum over the processes; tensors of one type travel together."""
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
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self._device)
        self.add_up(raised)
        return bool(raised)

    def rows(self, rows: Tensor, *, most: int | None = None) -> Tensor:
        """The rows [N, …] of all processes, in their order, or the first `most` of them; a process may have none."""
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
        """The tensors of all processes, of one shape, along a new first axis."""
        stacked = tensor.new_zeros(self.size, *tensor.shape)
        stacked[self.rank] = tensor
        self.add_up(stacked)
        return stacked

    def each(self, item: T) -> list[T]:
        """What every process has, in their order; for small things that can be pickled."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def from_main(self, item: T) -> T:
        """What the main process has."""
        if self.size == 1:
            return item
        found = [item]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """What `work` gives, after the main process has done it: the others find what that left on disk. If it fails there,
        they end with ToldByMain."""
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
        """What `work` gives in the main process, which alone does it. If it fails there, the others end with ToldByMain."""
        done = self.main_first(lambda: work() if self.is_main else None)
        return self.from_main(done)  # type: ignore[return-value]


ALONE = Ranks()
