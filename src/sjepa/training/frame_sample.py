"""Seeded samples of frames of the training set. B batch, T frames, N sampled frames, M windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
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
        rows: list[Tensor] = []
        draws: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
        for batch in batches:
            if not batch.num_samples:
                continue
            on_device = batch.to(self.device)
            features_BT = extract(on_device)
            for row, (window, samples) in enumerate(zip(batch.window, batch.num_samples, strict=True)):
                frames = sample.frames_M[window]
                frames = frames[frames < self.geometry.frames(samples)]
                rows.append(features_BT[row, torch.from_numpy(frames).to(self.device)].float())
                draws.append(hash_array(key(0, "sampled frame"), int(sample.window_M[window]), frames) / 2.0**64)
        if not rows:  # no frames on this rank: an empty tensor of the right shape
            quiet = collate([]).or_silence(self.geometry.fewest_samples).to(self.device)
            nothing = extract(quiet)[0, :0]
            return nothing.float(), torch.zeros(0, dtype=torch.float64)
        return torch.cat(rows), torch.from_numpy(np.concatenate(draws))


def training_frames(config: RunConfig, data: Data, engine: Engine) -> TrainingFrames:
    train = data.train.clips
    windows, workers = tiling(train, config.dataset), config.dataset.num_workers
    return TrainingFrames(train, windows, config.geometry, config.seed, workers, engine.device, engine.ranks)
