"""Seeded samples of frames of the training set. B batch, T frames, N sampled frames, M windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sjepa.config.run import RunConfig
from sjepa.core.distributed import Engine
from sjepa.core.frames import FrameGeometry
from sjepa.core.random import hash_array, key
from sjepa.core.ranks import Ranks
from sjepa.dataset.batch import Batch, collate
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Batching, Loader, Readers, WindowDataset
from sjepa.dataset.reservoir import FrameSample, draw_frames
from sjepa.dataset.windows import Windows
from sjepa.training.data import tiling
from sjepa.training.feeding import Data

UNREADABLE = "dataset.train_path: not one of the clips to draw frames from could be read"
_BATCH_CLIPS = 16

Extractor = Callable[[Batch], Tensor]  # a batch on its device → [B, T, …] features


@dataclass(frozen=True)
class TrainingFrames:
    """Samples frames from the training set, tiled into windows. Each rank reads its share of the
    windows."""

    clips: Clips
    windows: Windows
    geometry: FrameGeometry
    seed: int
    num_workers: int
    device: torch.device
    ranks: Ranks

    def draw(self, wanted: int, purpose: str, *, fewest_groups: int | None = None) -> tuple[FrameSample, Loader]:
        """About `wanted` frames, sampled uniformly, and a loader of the windows that contain
        them."""
        windows = self.windows
        ids = self.clips.id_N[windows.clip_N] * (1 << 20) + windows.start_N // max(1, int(windows.length_N.max()))
        draw_seed = key(self.seed, purpose)
        frames_N = self.geometry.frames(windows.length_N)
        sample = draw_frames(frames_N, ids, wanted, seed=draw_seed, fewest_groups=fewest_groups)
        dataset = WindowDataset(
            self.clips, windows.subset(sample.window_M), seed=self.seed, fewest_samples=self.geometry.fewest_samples
        )
        batches, ranks = Batching(_BATCH_CLIPS, shuffle=False), self.ranks
        return sample, Loader(dataset, batches, Readers(self.num_workers, rank=ranks.rank, size=ranks.size))

    @torch.no_grad()
    def gather(self, batches: Iterable[Batch], sample: FrameSample, extract: Extractor) -> tuple[Tensor, Tensor]:
        """Features of the sampled frames by `extract`, float32 [N, …], and a sample from U(0, 1)
        for each, keyed by window and frame, float64 [N].

        `batches` cover windows of `sample` (`Batch.window` is the position in it); unreadable
        windows are skipped.
        """
        expected = sum(map(len, sample.frames_M)) // self.ranks.size
        rows, draws = GrowingRows(expected), GrowingRows(expected)
        for batch in batches:
            if not batch.num_samples:
                continue
            on_device = batch.to(self.device)
            features_BT = extract(on_device)
            for row, (window, samples) in enumerate(zip(batch.window, batch.num_samples, strict=True)):
                frames = sample.frames_M[window]
                frames = frames[frames < self.geometry.frames(samples)]
                rows.add(features_BT[row, torch.from_numpy(frames).to(self.device)].float())
                drawn = hash_array(key(0, "sampled frame"), int(sample.window_M[window]), frames) / 2.0**64
                draws.add(torch.from_numpy(drawn))
        if rows.found is None or draws.found is None:  # no frames on this rank: an empty tensor of the right shape
            quiet = collate([]).or_silence(self.geometry.fewest_samples).to(self.device)
            nothing = extract(quiet)[0, :0]
            return nothing.float(), torch.zeros(0, dtype=torch.float64)
        return rows.found, draws.found


class GrowingRows:
    """Rows collected in one tensor. Small tensors that stay, made between large ones that go, would
    each split a large piece of freed memory, so that the next large one needs new memory
    (core/allocation.py keeps what was freed)."""

    def __init__(self, expected: int = 0) -> None:
        """`expected`: rows to make room for at first."""
        self._expected, self._count = expected, 0
        self._room_ND: Tensor | None = None

    def add(self, rows_ND: Tensor) -> None:
        room_ND, end = self._room_ND, self._count + len(rows_ND)
        if room_ND is None:
            room_ND = rows_ND.new_empty((max(self._expected, end), *rows_ND.shape[1:]))
        elif end > len(room_ND):
            room_ND = torch.cat([room_ND[: self._count], room_ND.new_empty((end, *room_ND.shape[1:]))])
        room_ND[self._count : end] = rows_ND
        self._room_ND, self._count = room_ND, end

    @property
    def found(self) -> Tensor | None:
        """The rows [N, …]; None before the first `add`."""
        return None if self._room_ND is None else self._room_ND[: self._count]


def training_frames(config: RunConfig, data: Data, engine: Engine) -> TrainingFrames:
    train = data.train.clips
    windows, workers = tiling(train, config.dataset), config.dataset.num_workers
    return TrainingFrames(train, windows, config.geometry, config.seed, workers, engine.device, engine.ranks)
