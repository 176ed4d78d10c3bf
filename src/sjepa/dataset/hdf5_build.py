"""Building the HDF5 file: parallel decoding, a single writer, resumable after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sjepa.core.errors import UserError
from sjepa.core.files import publish
from sjepa.core.progress import Progress
from sjepa.core.random import generator
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.augment import augmented
from sjepa.dataset.batch import Failure
from sjepa.dataset.hdf5 import SAMPLE_TYPES, to_samples
from sjepa.dataset.hdf5_write import FileContent, Writer, lay_out, locked, partial_path, progress_of
from sjepa.dataset.loader import from_workers, quiet_worker, worker_killed
from sjepa.dataset.windows import Windows, tiles

# chunk of a clip per work item (formats without seeking decode all preceding samples again)
_PIECE_SECONDS = 600
_REQUEST_CLIPS = 16


class Built(NamedTuple):
    """Result of a build. `clipped`: number of samples clipped to int16 full scale; `partners`:
    clips that could not be read for mixing."""

    target: Path
    bytes: int
    clips: int
    problems: list[Failure]
    clipped: int
    partners: list[Failure]


class Stopped(Exception):
    """The build was interrupted and can be resumed. `clips`: number of clips stored so far."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips)
        self.clips = clips


def build(
    content: FileContent,
    target: Path,
    *,
    num_workers: int,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Built:
    """Builds `target`, resuming a partial build. Raises Stopped soon after `stop()` returns True,
    and UserError if the disk is full (stored clips are kept) or another process is building
    `target`."""
    partial, again = partial_path(target), ""
    try:
        with locked(target):
            if not progress_of(content, target):
                try:
                    lay_out(content, partial)
                except (OSError, RuntimeError) as error:  # h5py raises RuntimeError on a full disk
                    partial.unlink(missing_ok=True)
                    raise UserError(f"{target}: cannot be written ({' '.join(str(error).split())})") from error
            again = "; run it again to go on"
            with partial.open("rb+", buffering=0) as raw:
                writer = Writer(content, partial, raw)
                try:
                    _write_all(content, writer, num_workers, progress, stop)
                finally:
                    writer.mark()
            clips = int((writer.column["length"][: content.clips.listed] > 0).sum())
            if not clips:
                partial.unlink()
                name, reason, _ = writer.problems()[0]
                raise UserError(
                    f"{target}: not one of {len(content.clips):,} clips could be decoded ({name}: {reason})"
                )
            publish(partial, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}){again}") from error
    except RuntimeError as error:
        raise worker_killed(error, "Run it again to go on") from error.__cause__
    return Built(target, target.stat().st_size, clips, writer.problems(), writer.clipped, writer.partners)


class _Decoded(NamedTuple):
    """A chunk of a clip in the file's sample type (`versions`: the clip, then each copy), or the
    reason for a failure."""

    position: int
    is_last: bool
    versions: list[Tensor]  # tensors: sent through shared memory instead of a pipe
    problem: str = ""
    clipped: int = 0
    partners: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class _Pieces(Dataset[_Decoded]):
    """Decodes chunks of clips, in worker processes."""

    content: FileContent
    pieces: Windows = field(repr=False)

    def __getitem__(self, number: int) -> _Decoded:
        content, pieces = self.content, self.pieces
        position, start, length = (int(column[number]) for column in (pieces.clip_N, pieces.start_N, pieces.length_N))
        is_last = start + length >= int(content.clips.length_N[position])
        try:
            clean = content.clips.read(position, start=start, length=length)
        except DecodeError as error:
            return _Decoded(position, is_last, [], str(error))
        kind = np.dtype(SAMPLE_TYPES[content.sample_type])
        partners: list[Failure] = []
        copies = [self._copy(clean, position, start, number, partners) for number in range(content.copies)]
        clipped = int((np.abs(clean) > 1).sum()) if kind.kind == "i" else 0
        stored = [torch.from_numpy(to_samples(waveform, kind)) for waveform in (clean, *copies)]
        return _Decoded(position, is_last, stored, clipped=clipped, partners=tuple(partners))

    def _copy(self, clean: Waveform, position: int, start: int, number: int, partners: list[Failure]) -> Waveform:
        """The augmented chunk. Tiles that exceed full scale are scaled down to it; the encoder is
        invariant to the level."""
        content = self.content
        assert content.augmentation is not None
        heard = clean.copy()
        tile_samples = content.tile_samples or max(1, len(clean))
        for first in range(0, len(clean), tile_samples):
            tile = clean[first : first + tile_samples]
            rng = generator(content.seed, "copy", number, int(content.clips.id_N[position]), start + first)
            made, failures = augmented(content.augmentation, tile, position, content.clips, rng)
            partners += failures
            heard[first : first + len(tile)] = made / max(1.0, float(np.abs(made).max()))
        return heard


def _write_all(
    content: FileContent, writer: Writer, num_workers: int, progress: Progress, stop: Callable[[], bool]
) -> None:
    clips = content.clips
    pieces = tiles(clips.length_N, _PIECE_SECONDS * clips.sample_rate)
    numbers = np.flatnonzero(pieces.clip_N >= writer.done)
    loader = DataLoader(
        _Pieces(content, pieces),
        batch_sampler=_requests(numbers, pieces.length_N * (1 + content.copies), _PIECE_SECONDS * clips.sample_rate),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=quiet_worker,
    )
    failed = -1
    for decoded in progress(
        (item for group in from_workers(iter(loader)) for item in group),
        total=len(numbers),
        label=f"{len(clips) - writer.done} clips",
    ):
        if decoded.problem and failed != decoded.position:
            failed = decoded.position
            writer.failed(failed, decoded.problem)
        if failed != decoded.position:
            writer.piece(decoded.position, [version.numpy() for version in decoded.versions])
        writer.clipped += decoded.clipped
        writer.partners += decoded.partners
        if decoded.is_last:
            writer.finished(decoded.position)
        if stop():
            raise Stopped(writer.done)


def _requests(numbers: NDArray[np.int64], length_N: NDArray[np.int64], most: int) -> list[list[int]]:
    """Groups chunks, in order, into work items of a few chunks and at most `most` samples."""
    groups: list[list[int]] = []
    taken = most
    for number in numbers.tolist():
        length = int(length_N[number])
        if taken + length > most or len(groups[-1]) >= _REQUEST_CLIPS:
            groups.append([])
            taken = 0
        groups[-1].append(number)
        taken += length
    return groups
