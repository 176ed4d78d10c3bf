"""Batches of an epoch, decoded in worker processes; can start at any batch."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from sjepa.core.errors import UserError
from sjepa.core.random import generator, key
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.augment import Augmentation, augmented
from sjepa.dataset.batch import Batch, Failure, Sample, collate
from sjepa.dataset.blend import Blend, turns
from sjepa.dataset.clips import Clips
from sjepa.dataset.order import bucketed_batches, fixed_batches, in_lanes, padding_waste
from sjepa.dataset.windows import Windows, crop_start

GRACE_SECONDS = 15  # before a worker exits after SIGTERM
_SECONDS_TO_DIE = 2.0

T = TypeVar("T")


class Request(NamedTuple):
    """One window of one epoch; random crops and augmentation are keyed by the epoch."""

    epoch: int
    window: int
    augment: bool
    turn: int = 0  # number of earlier occurrences of the window in this epoch


class WindowDataset(Dataset[tuple[Sample | None, list[Failure]]]):
    """Map-style dataset of windows. Stateless: an item depends on its `Request` only."""

    def __init__(
        self,
        clips: Clips,
        windows: Windows,
        *,
        seed: int,
        fewest_samples: int,
        augmentation: Augmentation | None = None,
        blend: Blend | None = None,
    ) -> None:
        """Windows with fewer than `fewest_samples` decoded samples are failures. `blend`: weighted
        sampling of windows; None: each window once per epoch."""
        self.clips, self.windows, self.seed, self.fewest_samples = clips, windows, seed, fewest_samples
        self.augmentation, self.blend = augmentation, blend

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, request: Request) -> tuple[Sample | None, list[Failure]]:
        position = int(self.windows.clip_N[request.window])
        start, length = int(self.windows.start_N[request.window]), int(self.windows.length_N[request.window])
        clip_id, name = int(self.clips.id_N[position]), self.clips.name(position)
        speaker = self.clips.speaker(position)
        seed = key(self.seed, "turn", request.turn) if request.turn else self.seed
        if start < 0:
            whole = int(self.clips.length_N[position])
            start = crop_start(seed, request.epoch, clip_id, clip_samples=whole, window_samples=length)
        try:
            clean = self.clips.read(position, start=start, length=length)
            if len(clean) < self.fewest_samples:
                raise DecodeError(f"only {len(clean)} samples where {length} were expected")
        except DecodeError as error:
            return None, [Failure(name, str(error))]
        if not request.augment or self.augmentation is None:
            return Sample(clean, clean, clip_id, request.window, name, speaker), []
        tile = int(self.windows.start_N[request.window])
        rng = generator(seed, "augment", request.epoch, clip_id, tile)
        heard, failures = self._heard(self.augmentation, clean, position, start, rng)
        return Sample(*self.augmentation.paced(clean, heard, rng), clip_id, request.window, name, speaker), failures

    def _heard(
        self, augmentation: Augmentation, clean: Waveform, position: int, start: int, rng: np.random.Generator
    ) -> tuple[Waveform, list[Failure]]:
        """The window augmented, or the same window of a stored copy."""
        copies = self.clips.copies(position)
        if not copies:
            return augmented(augmentation, clean, position, self.clips, rng)
        if rng.random() >= augmentation.probability:
            return clean, []
        try:
            return self.clips.read(position, start=start, length=len(clean), copy=int(rng.integers(copies))), []
        except DecodeError as error:
            return clean, [Failure(self.clips.name(position), str(error), is_own=False)]


class Batching(NamedTuple):
    """Grouping of windows into batches: `batch_size` clips, or at most `max_batch_samples` of
    padded audio if given. With `shards_at_once`, each batch is from one source and that many
    sources are read at a time."""

    batch_size: int
    max_batch_samples: int | None = None
    shuffle: bool = True
    shards_at_once: int | None = None

    def batches(self, dataset: WindowDataset, epoch: int) -> list[NDArray[np.int64]]:
        """Window indices of every batch of an epoch."""
        windows = dataset.windows
        if not self.shuffle:
            return _cut(np.arange(len(windows)), self.batch_size)
        if dataset.blend is not None:
            return self._grouped(dataset, dataset.blend.draw(epoch), epoch, dataset.seed)
        everything = np.arange(len(windows))
        if self.shards_at_once is None:
            return self._grouped(dataset, everything, epoch, dataset.seed)
        shard_M = dataset.clips.source_N[windows.clip_N]
        order = np.argsort(shard_M, kind="stable")
        present, first = np.unique(shard_M[order], return_index=True)
        shards = [
            self._grouped(dataset, own, epoch, key(dataset.seed, "shard", shard))
            for shard, own in zip(present.tolist(), np.split(everything[order], first[1:]), strict=True)
        ]
        return in_lanes(shards, self.shards_at_once, seed=dataset.seed, epoch=epoch)

    def _grouped(
        self, dataset: WindowDataset, chosen: NDArray[np.int64], epoch: int, seed: int
    ) -> list[NDArray[np.int64]]:
        if self.max_batch_samples is not None:
            lengths = dataset.windows.length_N[chosen]
            groups = bucketed_batches(lengths, self.max_batch_samples, seed=seed, epoch=epoch)
        else:
            locality = dataset.clips.locality_N[dataset.windows.clip_N[chosen]]
            groups = fixed_batches(len(chosen), self.batch_size, seed=seed, epoch=epoch, locality_N=locality)
        return [chosen[group] for group in groups]


def _cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


class EpochLoader(Protocol):
    """Interface of batch loaders, with statistics of an epoch; windows of long clips count as
    clips."""

    sample_rate: int
    num_clips: int
    num_batches: int
    num_rounds: int
    epoch_clips: int
    epoch_samples: int
    padding: float

    def largest_batches(self) -> list[tuple[int, int]]: ...

    def epoch(self, epoch: int, *, first_batch: int = 0, augment: Sequence[bool] | bool = False) -> Iterator[Batch]: ...


class Readers(NamedTuple):
    """Who reads: `num_workers` processes (threads, for a stream) of rank `rank` of `size`.
    `start_method`: multiprocessing start method of the workers; None: system default."""

    num_workers: int = 0
    pin_memory: bool = False
    rank: int = 0
    size: int = 1
    start_method: str | None = None


HERE = Readers()  # this process alone, without workers


class Loader:
    """Iterates over epochs of a dataset, with persistent worker processes.

    Rank `rank` of `size` takes every `size`-th batch. All ranks get the same number of batches; the
    missing ones are empty.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        batching: Batching,
        readers: Readers = HERE,
    ) -> None:
        self.dataset, self.batching = dataset, batching
        self._rank, self._size = readers.rank, readers.size
        first = batching.batches(dataset, 0)
        self.num_batches = len(first)  # over all ranks
        self.sample_rate, self.num_clips = dataset.clips.sample_rate, len(dataset)
        self.epoch_clips = sum(map(len, first))
        self.epoch_samples = sum(int(dataset.windows.length_N[batch].sum()) for batch in first)
        self.padding = padding_waste(first, dataset.windows.length_N)
        self.num_rounds = -(-self.num_batches // readers.size)  # batches of this rank
        self._requests: list[list[Request]] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Requests(self._requests),  # type: ignore[arg-type]
            num_workers=readers.num_workers,
            collate_fn=collate,
            pin_memory=readers.pin_memory,
            persistent_workers=readers.num_workers > 0,
            worker_init_fn=quiet_worker,
            multiprocessing_context=readers.start_method if readers.num_workers else None,
        )

    def largest_batches(self) -> list[tuple[int, int]]:
        """Shapes (clips, samples of the longest) with the highest memory use in any epoch: the most
        padded audio, and a full batch with the longest clip."""
        lengths, batching = self.dataset.windows.length_N, self.batching
        if batching.max_batch_samples is None:
            return [(min(batching.batch_size, len(lengths)), int(lengths.max()))]
        shapes = {(len(batch), int(lengths[batch].max())) for batch in batching.batches(self.dataset, 0)}
        longest = int(lengths.max())  # with weighted corpora it may occur only in another epoch
        together = (max(1, batching.max_batch_samples // longest), longest)
        return sorted({max(shapes, key=lambda shape: shape[0] * shape[1]), together})

    def epoch(self, epoch: int, *, first_batch: int = 0, augment: Sequence[bool] | bool = False) -> Iterator[Batch]:
        """This rank's batches of an epoch, from `first_batch` on (counted over all ranks).
        `augment`: for all batches, or a sequence with one flag per batch."""
        batches = self._batches(epoch)
        own = range(first_batch + self._rank, len(batches), self._size)
        flags = [augment] * len(batches) if isinstance(augment, bool) else augment
        again = turns(batches) if self.dataset.blend is not None else [np.zeros(len(batch), int) for batch in batches]
        requests = [
            [
                Request(epoch, window, flags[number], turn)
                for window, turn in zip(batches[number].tolist(), again[number].tolist(), strict=True)
            ]
            for number in own
        ]
        rounds = -(-(len(batches) - first_batch) // self._size)
        self._requests[:] = requests + [[]] * (rounds - len(requests))
        return from_workers(iter(self._loader))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The same number of batches in every epoch. With weighted corpora the number may vary:
        surplus batches are dropped, missing ones are taken from the next epoch."""
        batches = self.batching.batches(self.dataset, epoch)
        if len(batches) < self.num_batches:
            batches += self.batching.batches(self.dataset, epoch + 1)
        return batches[: self.num_batches]


class _Requests:
    """Batch sampler that yields the current content of a mutable list."""

    def __init__(self, requests: list[list[Request]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


def from_workers(items: Iterator[T]) -> Iterator[T]:
    """Yields the items of worker processes. A killed worker may close its connection before the
    DataLoader has detected its exit."""
    try:
        yield from items
    except (ConnectionError, EOFError):
        # lets the DataLoader's SIGCHLD handler raise the error that `worker_killed` recognises
        time.sleep(_SECONDS_TO_DIE)
        raise


def worker_killed(error: RuntimeError, advice: str) -> Exception:
    """A UserError for a killed worker process; other errors are returned unchanged."""
    if "DataLoader worker" not in str(error):
        return error
    return UserError("dataset.num_workers: a data loading worker was killed (out of memory?); use fewer. " + advice)


def quiet_worker(_: int) -> None:
    """Worker initialisation. Workers ignore SIGINT and delay SIGTERM by a grace period: signals
    reach the whole process group, and the parent needs its workers to finish the current update.
    They exit afterwards, since an exiting parent joins them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    torch.set_num_threads(1)
