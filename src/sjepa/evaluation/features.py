"""Frozen features of whole data sets, from any encoder or from MFCC. B batch, T frames, L layers, D
features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch, Failure
from sjepa.dataset.windows import Windows
from sjepa.features.mel_frontend import MelFrontend
from sjepa.features.mfcc import MFCC, NUM_FEATURES
from sjepa.gmm.space import AS_THEY_ARE, MixtureSpace, SpaceSettings

LayerSpec = int | Literal["learned"]


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: `compute` maps waveforms, lengths in samples and speaker keys to the
    features of all layers, [L, B, T, D]."""

    name: str
    num_layers: int
    geometry: FrameGeometry
    device: torch.device
    compute: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def columns(self, specs: Sequence[LayerSpec]) -> list[tuple[str, list[int]]]:
        """Name and required layers of each spec. An extractor with a single layer uses it for
        all specs. Raises UserError if a layer does not exist."""
        if self.num_layers == 1:
            return [("", [0])]
        found: dict[str, list[int]] = {}  # -1 and the index of the last layer are merged
        for spec in specs:
            if spec == "learned":
                found["learned"] = list(range(self.num_layers))
            elif -self.num_layers <= spec < self.num_layers:
                found[str(spec % self.num_layers)] = [spec % self.num_layers]
            else:
                raise UserError(f"probe.layers: {self.name} has layers 0 to {self.num_layers - 1}, not {spec}")
        return list(found.items())


def mfcc_extractor(engine: Engine, geometry: FrameGeometry, space: SpaceSettings = AS_THEY_ARE) -> Extractor:
    mfcc = engine.to_device(MFCC(geometry))
    return _plain(Extractor("MFCC", 1, geometry, engine.device, lambda *given: mfcc(*given[:2])), NUM_FEATURES, space)


def mel_extractor(engine: Engine, geometry: FrameGeometry, space: SpaceSettings = AS_THEY_ARE) -> Extractor:
    """The log-mel levels computed by the log-mel frontend."""
    frontend = engine.to_device(MelFrontend(statistics="corpus", geometry=geometry))
    width = frontend.num_channels
    plain = Extractor("log-mel", 1, geometry, engine.device, lambda waveform_BS, *_: frontend.levels(waveform_BS))
    return _plain(plain, width, space)


def _plain(source: Extractor, width: int, settings: SpaceSettings) -> Extractor:
    """Features without a network, [B, T, D], normalised and spliced according to `settings`."""
    space = MixtureSpace(settings, width)

    def prepared(waveform_BS: Tensor, num_samples_B: Tensor, speaker_B: Tensor | None) -> Tensor:
        frames_BTD = source.compute(waveform_BS, num_samples_B, speaker_B)
        return space.frames(frames_BTD, source.geometry.frames(num_samples_B))[None]

    return replace(source, name=settings.describe(source.name), compute=prepared)


class ClipBatches(NamedTuple):
    """A data set of `num_clips` clips in batches of windows."""

    batches: Iterable[Batch]
    windows: Windows
    num_clips: int


class ClipFeatures(NamedTuple):
    """Per clip: mean over time [L, D], frames [T, L, D] if kept, and frame times (seconds). Mean
    and frames are None for unreadable clips."""

    means: list[Tensor | None]
    frames: list[Tensor | None]
    seconds: list[NDArray[np.float64]]

    def mean_of(self, position: int) -> Tensor:
        """[L, D] of a readable clip."""
        mean_LD = self.means[position]
        assert mean_LD is not None
        return mean_LD

    def frames_of(self, position: int) -> Tensor:
        """[T, L, D] of a readable clip whose frames were kept."""
        frames_TLD = self.frames[position]
        assert frames_TLD is not None
        return frames_TLD


def joined(sets: Sequence[ClipFeatures]) -> ClipFeatures:
    """Concatenates the clips of several sets."""
    return ClipFeatures(
        [mean for own in sets for mean in own.means],
        [frames for own in sets for frames in own.frames],
        [seconds for own in sets for seconds in own.seconds],
    )


@torch.no_grad()
def extract(
    extractor: Extractor,
    layers: Sequence[int],
    data: ClipBatches,
    *,
    keep_frames: bool,
    warn: Callable[[Failure], None],
) -> ClipFeatures:
    """Features of `layers` in CPU memory; the windows of a long clip are concatenated."""
    windows, num_clips = data.windows, data.num_clips
    parts: list[list[Tensor]] = [[] for _ in range(num_clips)]
    times: list[list[NDArray[np.float64]]] = [[] for _ in range(num_clips)]
    for batch in data.batches:
        for failure in batch.failures:
            warn(failure)
        if not batch.num_samples:
            continue
        batch = batch.to(extractor.device)
        samples_B = to_device(batch.num_samples, extractor.device)
        found_LBTD = extractor.compute(batch.clean_BS, samples_B, batch.speaker_B)[list(layers)]
        found_BTLD = found_LBTD.permute(1, 2, 0, 3).float().cpu()
        for row, (window, samples) in enumerate(zip(batch.window, batch.num_samples, strict=True)):
            clip, frames = int(windows.clip_N[window]), extractor.geometry.frames(samples)
            seconds = extractor.geometry.centres(int(windows.start_N[window]), frames)
            new = slice(int(np.searchsorted(seconds, times[clip][-1][-1], side="right")) if times[clip] else 0, frames)
            own_TLD = found_BTLD[row, new]  # a clip's last window may overlap the previous one
            parts[clip].append(own_TLD.clone() if keep_frames else own_TLD.sum(0, keepdim=True))
            times[clip].append(seconds[new])
    window_count_N = np.bincount(windows.clip_N, minlength=num_clips)
    means: list[Tensor | None] = []
    kept: list[Tensor | None] = []
    for clip, own in enumerate(parts):
        is_whole = len(own) == window_count_N[clip]
        whole_TLD = torch.cat(own) if is_whole else torch.zeros(0)
        own.clear()  # free memory
        count = sum(map(len, times[clip]))
        means.append(whole_TLD.sum(0) / count if is_whole else None)
        kept.append(whole_TLD if is_whole and keep_frames else None)
    return ClipFeatures(means, kept, [np.concatenate(own) if own else np.zeros(0) for own in times])
