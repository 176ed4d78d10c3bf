"""Batches of an epoch, decoded in worker processes, from any position on."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from sjepa.core.frames import SPEECH
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.augment import Augmentation, PartnerError
from sjepa.dataset.batch import Batch, Failure, Sample, collate
from sjepa.dataset.clips import Clips
from sjepa.dataset.order import bucketed_batches, fixed_batches
from sjepa.dataset.windows import Windows, crop_start

GRACE_SECONDS = 15  # that a worker lives on after a SIGTERM
_FEWEST_SAMPLES = SPEECH.samples(2)  # one frame to mask and one to see


class Request(NamedTuple):
    """One window of one epoch; random crops and augmentation are keyed by the epoch."""

    epoch: int
    window: int
    augment: bool


class WindowDataset(Dataset[tuple[Sample | None, list[Failure]]]):
    """Windows of clips, read when asked for. It keeps no state, so any process gives the same answer."""

    def __init__(self, clips: Clips, windows: Windows, *, seed: int, augmentation: Augmentation | None = None) -> None:
        self.clips, self.windows, self.seed, self.augmentation = clips, windows, seed, augmentation

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, request: Request) -> tuple[Sample | None, list[Failure]]:
        position = int(self.windows.clip_N[request.window])
        start, length = int(self.windows.start_N[request.window]), int(self.windows.length_N[request.window])
        clip_id, name = int(self.clips.id_N[position]), self.clips.name(position)
        if start < 0:
            whole = int(self.clips.length_N[position])
            start = crop_start(self.seed, request.epoch, clip_id, clip_samples=whole, window_samples=length)
        try:
            clean = self.clips.read(position, start=start, length=length)
            if len(clean) < _FEWEST_SAMPLES:
                raise DecodeError(f"only {len(clean)} samples where {length} were expected")
        except DecodeError as error:
            return None, [Failure(name, str(error))]
        heard, failures = clean, []
        if request.augment and self.augmentation is not None:
            tile = int(self.windows.start_N[request.window])
            rng = generator(self.seed, "augment", request.epoch, clip_id, tile)
            try:
                copies = self.clips.copies(position)
                if not copies:
                    heard = self.augmentation(clean, position, self.clips, rng)
                elif rng.random() < self.augmentation.p_noise + self.augmentation.p_mix:
                    heard = self.clips.read(position, start=start, length=length, copy=int(rng.integers(copies)))
            except PartnerError as error:
                failures.append(Failure(error.name, error.reason, is_own=False))
            except DecodeError as error:  # of a copy
                failures.append(Failure(name, str(error), is_own=False))
        return Sample(clean, heard, clip_id, request.window, name), failures


class BatchPlan(NamedTuple):
    """How windows are grouped: `batch_size` clips, or at most `max_batch_samples` of padded audio if that is given."""

    batch_size: int
    max_batch_samples: int | None = None
    shuffle: bool = True

    def batches(self, dataset: WindowDataset, epoch: int) -> list[NDArray[np.int64]]:
        """The windows of every batch of an epoch."""
        windows, seed = dataset.windows, dataset.seed
        if self.max_batch_samples is not None:
            return bucketed_batches(windows.length_N, self.max_batch_samples, seed=seed, epoch=epoch)
        if not self.shuffle:
            return [
                np.arange(start, min(start + self.batch_size, len(windows)))
                for start in range(0, len(windows), self.batch_size)
            ]
        locality = dataset.clips.locality_N[windows.clip_N]
        return fixed_batches(len(windows), self.batch_size, seed=seed, epoch=epoch, locality_N=locality)


class Loader:
    """Iterates over epochs of a dataset. Worker processes start at the first use and stay.

    Of several processes that share the epochs, `rank` of `size` takes every `size`-th batch. All of them take as many:
    those that run out get a batch of no clips.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        plan: BatchPlan,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        size: int = 1,
        start_method: str | None = None,
    ) -> None:
        """`start_method`: how worker processes start; None: as the system prefers."""
        self.dataset, self.plan = dataset, plan
        self._rank, self._size = rank, size
        self.num_batches = len(plan.batches(dataset, 0))  # of all processes
        self.num_rounds = -(-self.num_batches // size)  # batches that this one takes
        self._requests: list[list[Request]] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Requests(self._requests),  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=quiet_worker,
            multiprocessing_context=start_method if num_workers else None,
        )

    def epoch(self, epoch: int, *, first_batch: int = 0, augment: Sequence[bool] | bool = False) -> Iterator[Batch]:
        """This process's batches of an epoch, those before `first_batch` (counted over all processes) left out; `augment`
        for all or, as a sequence, batch by batch."""
        batches = self.plan.batches(self.dataset, epoch)
        own = range(first_batch + self._rank, len(batches), self._size)
        flags = [augment] * len(batches) if isinstance(augment, bool) else augment
        requests = [[Request(epoch, int(window), flags[number]) for window in batches[number]] for number in own]
        rounds = -(-(len(batches) - first_batch) // self._size)
        self._requests[:] = requests + [[]] * (rounds - len(requests))
        return iter(self._loader)


class _Requests:
    """The batch sampler: whatever the list holds when an epoch starts."""

    def __init__(self, requests: list[list[Request]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


def quiet_worker(_: int) -> None:
    """Signals sent to the whole group are the main process's to handle: it needs the workers to finish its update. A
    SIGTERM gives them a while to be told to end; they must not outlive it, since an exiting parent waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    torch.set_num_threads(1)
