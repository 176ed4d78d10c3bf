"""Dump of units and posteriors of every frame of a data set, e.g. to train unit language models.

N frames, M clips, T frames of a clip, K components, J stored components.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.files import atomic_path, write_text
from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.dataset.clips import Clips
from sjepa.evaluation.features import ClipBatches
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.units.readings import read_encoder, real_frames

_COPY_BYTES = 1 << 20


class ClipUnits(NamedTuple):
    """A clip: frame start times (samples) [T], the top components of each frame, best first, [T,
    J], and their posteriors."""

    position: int
    start_T: NDArray[np.int64]
    component_TJ: NDArray[np.int32]
    posterior_TJ: NDArray[np.float16]


class UnitReader(NamedTuple):
    """`posteriors` maps a batch on `device` to posteriors [N, K] of its real frames."""

    geometry: FrameGeometry
    device: torch.device
    posteriors: Callable[[Batch], Tensor]


def encoder_reader(engine: Engine, model: SJEPA) -> UnitReader:
    """Posteriors of the head on unmasked encoder output."""
    geometry = model.eval().encoder.geometry
    return UnitReader(geometry, engine.device, lambda batch: read_encoder(engine, model, batch, geometry).exp())


def target_reader(engine: Engine, targets: Targets) -> UnitReader:
    """Posteriors of the targets."""

    def read(batch: Batch) -> Tensor:
        frame_N = real_frames(batch, targets.geometry)
        with engine.autocast():
            samples_B = to_device(batch.num_samples, engine.device)
            return targets.posteriors(batch.clean_BS, samples_B, frame_N, batch.speaker_B)

    return UnitReader(targets.geometry, engine.device, read)


@torch.no_grad()
def units(reader: UnitReader, data: ClipBatches, *, top_k: int, warn: Callable[[Failure], None]) -> Iterator[ClipUnits]:
    """Yields clips in order, windows of long clips concatenated; clips not fully readable are
    skipped."""
    parts: list[ClipUnits] = []
    windows, geometry = data.windows, reader.geometry
    count_M = np.bincount(windows.clip_N)
    for batch in data.batches:
        for failure in batch.failures:
            warn(failure)
        if not batch.num_samples:
            continue
        posterior_NK = reader.posteriors(batch.to(reader.device))
        best_NJ = posterior_NK.topk(min(top_k, posterior_NK.shape[1]), dim=1)
        frames = [geometry.frames(samples) for samples in batch.num_samples]
        components = best_NJ.indices.to(torch.int32).cpu().split(frames)
        values = best_NJ.values.to(torch.float16).cpu().split(frames)
        for window, component_TJ, value_TJ in zip(batch.window, components, values, strict=True):
            clip = int(windows.clip_N[window])
            if parts and parts[0].position != clip:
                parts = []  # a window of that clip could not be read
            start_T = windows.start_N[window] + geometry.hop_samples * np.arange(len(component_TJ))
            # a clip's last window may overlap the one before
            new = slice(int(np.searchsorted(start_T, parts[-1].start_T[-1], side="right")) if parts else 0, None)
            parts.append(ClipUnits(clip, start_T[new], component_TJ.numpy()[new], value_TJ.numpy()[new]))
            if len(parts) == count_M[clip]:
                yield ClipUnits(clip, *(np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]))
                parts = []


def write_dump(folder: Path, clips: Clips, found: Iterable[ClipUnits]) -> tuple[int, int]:
    """Writes units.km (one line of units per clip), units.tsv (path, samples, frames of each clip)
    and posteriors.npz; returns the numbers of clips and frames. Streams to disk: memory holds only
    clip names.

    posteriors.npz: `clip` (paths), `first_frame` [M + 1], `start` int64 [N] (frame start within its
    clip, samples), `components` int32 [N, J] and `posteriors` float16 [N, J]; the frames of clip m
    are rows first_frame[m] to first_frame[m + 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, names, first, kept = ["path\tsamples\tframes"], [], [0], 1
    with (
        tempfile.TemporaryFile(dir=folder) as unit_lines,
        tempfile.TemporaryFile(dir=folder) as starts,
        tempfile.TemporaryFile(dir=folder) as components,
        tempfile.TemporaryFile(dir=folder) as posteriors,
    ):
        for clip in found:
            kept = clip.component_TJ.shape[1]
            unit_lines.write((" ".join(map(str, clip.component_TJ[:, 0].tolist())) + "\n").encode())
            starts.write(clip.start_T.tobytes())
            components.write(clip.component_TJ.tobytes())
            posteriors.write(clip.posterior_TJ.tobytes())
            names.append(clips.path(clip.position))
            first.append(first[-1] + len(clip.component_TJ))
            lines.append(f"{names[-1]}\t{clips.length_N[clip.position]}\t{len(clip.component_TJ)}")
        with atomic_path(folder / "posteriors.npz") as npz_path, zipfile.ZipFile(npz_path, "w") as archive:
            _store(archive, "clip", np.array(names, np.str_))
            _store(archive, "first_frame", np.array(first, np.int64))
            _store_stream(archive, "start", starts, np.dtype(np.int64), (first[-1],))
            _store_stream(archive, "components", components, np.dtype(np.int32), (first[-1], kept))
            _store_stream(archive, "posteriors", posteriors, np.dtype(np.float16), (first[-1], kept))
        write_text(folder / "units.tsv", "\n".join(lines) + "\n")
        unit_lines.seek(0)
        with atomic_path(folder / "units.km") as path, path.open("wb") as file:
            shutil.copyfileobj(unit_lines, file, _COPY_BYTES)
    return len(names), first[-1]


def _store(archive: zipfile.ZipFile, name: str, values: NDArray[np.generic]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, values)


def _store_stream(
    archive: zipfile.ZipFile, name: str, stream: IO[bytes], dtype: np.dtype[np.generic], shape: Sequence[int]
) -> None:
    stream.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_2_0(entry, header)
        shutil.copyfileobj(stream, entry, _COPY_BYTES)
