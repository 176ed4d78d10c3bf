"""Units and posteriors of every frame of a data set, for those who train on units.

N frames, M clips, T frames of a clip, K components, J of them kept.
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
from sjepa.core.frames import SPEECH
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.dataset.clips import Clips
from sjepa.dataset.windows import Windows
from sjepa.evaluation.readings import read_encoder, real_frames
from sjepa.model import SJEPA
from sjepa.targets.base import Targets

_COPY_BYTES = 1 << 20


class ClipUnits(NamedTuple):
    """A whole clip: the likeliest components of each frame, best first, [T, J], and their posteriors."""

    position: int
    component_TJ: NDArray[np.int32]
    posterior_TJ: NDArray[np.float16]


Read = Callable[[Batch], Tensor]


def encoder_reader(engine: Engine, model: SJEPA) -> Read:
    """Posteriors [N, K] of a batch's real frames: the head on the encoder's output, nothing masked."""
    model.eval()
    return lambda batch: read_encoder(engine, model, batch).exp()


def target_reader(engine: Engine, targets: Targets) -> Read:
    """Posteriors [N, K] of a batch's real frames: those that training aims at."""

    def read(batch: Batch) -> Tensor:
        frame_N = real_frames(batch)
        with engine.autocast():
            return targets.posteriors(batch.clean_BS, to_device(batch.num_samples, engine.device), frame_N)

    return read


@torch.no_grad()
def units(
    engine: Engine,
    read: Read,
    batches: Iterable[Batch],
    windows: Windows,
    *,
    top_k: int,
    warn: Callable[[Failure], None],
) -> Iterator[ClipUnits]:
    """The clips in order, those left out that cannot be read whole; the windows of a longer one joined."""
    parts: list[tuple[int, NDArray[np.int32], NDArray[np.float16]]] = []
    count_M = np.bincount(windows.clip_N)
    for batch in batches:
        for failure in batch.failures:
            warn(failure)
        if not batch.num_samples:
            continue
        posterior_NK = read(batch.to(engine.device))
        best_NJ = posterior_NK.topk(min(top_k, posterior_NK.shape[1]), dim=1)
        frames = [SPEECH.frames(samples) for samples in batch.num_samples]
        components = best_NJ.indices.to(torch.int32).cpu().split(frames)
        values = best_NJ.values.to(torch.float16).cpu().split(frames)
        for window, component_TJ, value_TJ in zip(batch.window, components, values, strict=True):
            clip = int(windows.clip_N[window])
            if parts and parts[0][0] != clip:
                parts = []  # a window of that clip could not be read
            parts.append((clip, component_TJ.numpy(), value_TJ.numpy()))
            if len(parts) == count_M[clip]:
                yield ClipUnits(clip, np.concatenate([c for _, c, _ in parts]), np.concatenate([v for *_, v in parts]))
                parts = []


def write_dump(folder: Path, clips: Clips, found: Iterable[ClipUnits]) -> tuple[int, int]:
    """Writes units.km (a line of units per clip), units.tsv (its clips: path, samples, frames) and posteriors.npz; how many
    clips and frames they hold. Memory does not grow with the data.

    posteriors.npz: `clip` (paths), `first_frame` [M + 1], `components` int32 [N, J] and `posteriors` float16 [N, J]; the
    frames of clip m are rows first_frame[m] to first_frame[m + 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, names, first = ["path\tsamples\tframes"], [], [0]
    kept = 1
    with (
        tempfile.TemporaryFile(dir=folder) as components,
        tempfile.TemporaryFile(dir=folder) as posteriors,
        atomic_path(folder / "units.km") as unit_path,
    ):
        with unit_path.open("w", encoding="ascii") as unit_file:
            for clip in found:
                kept = clip.component_TJ.shape[1]
                components.write(clip.component_TJ.tobytes())
                posteriors.write(clip.posterior_TJ.tobytes())
                unit_file.write(" ".join(map(str, clip.component_TJ[:, 0].tolist())) + "\n")
                names.append(clips.path(clip.position))
                first.append(first[-1] + len(clip.component_TJ))
                lines.append(f"{names[-1]}\t{clips.length_N[clip.position]}\t{len(clip.component_TJ)}")
        write_text(folder / "units.tsv", "\n".join(lines) + "\n")
        shape = (first[-1], kept)
        with atomic_path(folder / "posteriors.npz") as npz_path, zipfile.ZipFile(npz_path, "w") as archive:
            _store(archive, "clip", np.array(names))
            _store(archive, "first_frame", np.array(first, np.int64))
            _store_stream(archive, "components", components, np.dtype(np.int32), shape)
            _store_stream(archive, "posteriors", posteriors, np.dtype(np.float16), shape)
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
