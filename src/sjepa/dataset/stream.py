"""Training batches from a stream; clips are decoded on the fly and not stored."""

from __future__ import annotations

import hashlib
import io
import queue
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError, decode_window, probe, resampled_length
from sjepa.dataset.augment import Augmentation, augmented
from sjepa.dataset.batch import Batch, Failure, Sample, collate
from sjepa.dataset.clips import Clips
from sjepa.dataset.hub import HubStream, audio_file
from sjepa.dataset.loader import HERE, Readers
from sjepa.dataset.windows import crop_start

T = TypeVar("T")

# unused epoch number: its shuffle order differs from that of training epochs
_SAMPLE_EPOCH = 1 << 20
_BATCHES_AHEAD = 4


class StreamBatching(NamedTuple):
    """Batching of a stream: `batch_size` clips cropped to `max_samples`; clips shorter than
    `min_samples` are skipped. Clips with fewer than `fewest_samples` decoded samples are
    failures."""

    batch_size: int
    max_samples: int
    min_samples: int
    seed: int
    fewest_samples: int


def keep_some(stream: HubStream, target: Path, clips: int) -> None:
    """Writes some clips of the stream to a .tar unless it exists; they are used for fitting
    mixtures, ranking layers and mixing. Raises UserError if streaming or writing fails."""
    if target.exists():
        return
    with atomic_path(target) as temporary, tarfile.open(temporary, "w") as archive:
        for number, audio in islice(stream.rows(_SAMPLE_EPOCH), clips):
            try:
                with audio_file(audio) as file:
                    content = file.read()
            except (DecodeError, OSError):
                continue
            # whatever the format: it is detected from the content
            info = tarfile.TarInfo(f"{number:09d}.wav")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def contents(kept: Path, clips: Clips) -> frozenset[bytes]:
    """What tells the files of `clips`, which are from a .tar of `keep_some`, from others."""
    names = {Path(clips.name(position)).name for position in range(len(clips))}
    with tarfile.open(kept) as archive:
        files = (archive.extractfile(member) for member in archive if member.name in names)
        return frozenset(_content(file) for file in files if file is not None)


def _content(file: IO[bytes]) -> bytes:
    """A digest of a file; it is rewound."""
    digest = hashlib.blake2b(file.read(), digest_size=16).digest()
    file.seek(0)
    return digest


class StreamLoader:
    """Iterates over epochs of a stream, like `Loader` over random-access clips. To resume inside an
    epoch it skips the preceding rows without decoding them.

    Rank `rank` of `size` reads its own part of the rows.
    """

    def __init__(
        self,
        stream: HubStream,
        batching: StreamBatching,
        kept: Clips,
        *,
        augmentation: Augmentation | None = None,
        readers: Readers = HERE,
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        """`kept`: stored clips of the stream, for length statistics and as mixing partners;
        `without`: the `contents` of clips that are passed over."""
        self._stream, self._batching, self._kept, self._augmentation = stream, batching, kept, augmentation
        self._readers, self._without = readers, without
        self.sample_rate = kept.sample_rate
        self._batch_rows = min(batching.batch_size, stream.num_rows)
        self.num_batches = stream.num_rows // self._batch_rows  # over all ranks
        self.num_rounds = -(-self.num_batches // readers.size)  # batches of this rank
        self.epoch_clips = self.num_clips = self.num_batches * self._batch_rows
        heard = kept.length_N.clip(max=batching.max_samples)
        self.epoch_samples = round(float(heard.mean()) * self.epoch_clips)  # estimate
        self.padding = float(heard.max() / heard.mean() - 1)

    def largest_batches(self) -> list[tuple[int, int]]:
        """Shape (clips, samples of the longest) with the highest memory use."""
        return [(self._batch_rows, self._batching.max_samples)]

    def epoch(self, epoch: int, *, first_batch: int = 0, augment: Sequence[bool] | bool = False) -> Iterator[Batch]:
        """This rank's batches of an epoch, from `first_batch` on (counted over all ranks)."""
        own = range(first_batch + self._readers.rank, self.num_batches, self._readers.size)
        flags = [augment] * self.num_batches if isinstance(augment, bool) else augment
        rounds = -(-(self.num_batches - first_batch) // self._readers.size)
        return _ahead(
            self._batches(epoch, first_batch // self._readers.size, [flags[number] for number in own], rounds)
        )

    def _batches(self, epoch: int, passed: int, flags: list[bool], rounds: int) -> Iterator[Batch]:
        size = self._batch_rows
        rows = islice(self._rows(epoch), passed * size, None)
        with ThreadPoolExecutor(max(1, self._readers.num_workers)) as pool:
            for flag in flags:
                batch = collate(list(pool.map(partial(self._item, epoch, flag), islice(rows, size))))
                yield batch.pin_memory() if self._readers.pin_memory and batch.num_samples else batch
        # other ranks have one more batch
        yield from (collate([]) for _ in range(rounds - len(flags)))

    def _rows(self, epoch: int) -> Iterator[tuple[int, Any]]:
        """This rank's rows of an epoch. Whole files are assigned to ranks; a rank with fewer rows
        repeats them. Raises UserError if there are fewer rows than stated."""
        while True:
            count = 0
            for row in self._stream.rows(epoch, reader=self._readers.rank, readers=self._readers.size):
                count += 1
                yield row
            if self._readers.size == 1 or count == 0:
                raise UserError(
                    f"dataset.hf.rows: {self._stream.options.spec} ended after {count:,} rows, and not after "
                    f"{self._stream.num_rows:,}"
                )

    def _item(self, epoch: int, augment: bool, row: tuple[int, Any]) -> tuple[Sample | None, list[Failure]]:
        batching, (number, audio) = self._batching, row
        name = f"{self._stream.options.spec}/{number}"
        try:
            with audio_file(audio) as file:
                if self._without and _content(file) in self._without:
                    return None, []
                info = probe(file, measure=False)
                whole = int(resampled_length(info.samples, info.rate, self.sample_rate))
                if whole < batching.min_samples:
                    return None, []
                length = min(whole, batching.max_samples)
                start = crop_start(batching.seed, epoch, number, clip_samples=whole, window_samples=length)
                clean = decode_window(file, info, start=start, length=length, rate=self.sample_rate)
            if len(clean) < batching.fewest_samples:
                raise DecodeError(f"only {len(clean)} samples where {length} were expected")
        except (DecodeError, OSError) as error:
            return None, [Failure(name, str(error))]
        if augment and self._augmentation is not None:
            rng = generator(batching.seed, "augment", epoch, number, 0)
            heard, failures = augmented(self._augmentation, clean, -1, self._kept, rng)
            clean, heard = self._augmentation.paced(clean, heard, rng)
        else:
            heard, failures = clean, []
        return Sample(clean, heard, number, 0, name), failures


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Prefetches a few items in a background thread, which ends when the generator is closed."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_BATCHES_AHEAD)
    left = threading.Event()

    def offer(item: T | None, error: BaseException | None) -> None:
        while not left.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer(item, None)
                if left.is_set():
                    return
            offer(None, None)
        except BaseException as error:
            offer(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        left.set()
        thread.join()
