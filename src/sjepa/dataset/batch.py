"""Batches of padded waveforms for the training step. B batch, S samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from sjepa.core.tensors import to_device
from sjepa.dataset.audio import Waveform


class Sample(NamedTuple):
    """One window: clean waveform, encoder input, clip id, window index, name and speaker key (0:
    unknown)."""

    clean: Waveform
    heard: Waveform
    clip_id: int
    window: int
    name: str
    speaker: int = 0


class Failure(NamedTuple):
    """A clip that could not be read while loading, with the reason."""

    name: str
    reason: str
    # False: a mixing partner or stored copy; the clip was used without augmentation
    is_own: bool = True


@dataclass(frozen=True)
class Batch:
    """Windows zero-padded to the longest: `clean_BS` for targets, `heard_BS` for the encoder,
    float32; `speaker_B`: speaker keys, 0 for unknown.

    `num_samples` stays on the CPU, so that counts derived from it need no device synchronisation.
    """

    clean_BS: torch.Tensor
    heard_BS: torch.Tensor
    num_samples: tuple[int, ...]
    clip_id_B: torch.Tensor
    window: tuple[int, ...]
    names: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    speaker_B: torch.Tensor | None = None

    @property
    def total_samples(self) -> int:
        return sum(self.num_samples)

    def lengths(self) -> torch.Tensor | None:
        """`num_samples` on the device of the waveforms; None if no window is padded."""
        if all(samples == self.clean_BS.shape[1] for samples in self.num_samples):
            return None
        return to_device(self.num_samples, self.clean_BS.device)

    def or_silence(self, samples: int) -> Batch:
        """The batch, or `samples` of silence if it is empty: all ranks must run the same number of
        forward passes."""
        if self.num_samples:
            return self
        waveform = torch.zeros(1, samples)
        return Batch(waveform, waveform, (samples,), torch.zeros(1, dtype=torch.int64), (0,), ())

    def pin_memory(self) -> Batch:
        clean = self.clean_BS.pin_memory()
        heard = clean if self.heard_BS is self.clean_BS else self.heard_BS.pin_memory()
        speaker_B = None if self.speaker_B is None else self.speaker_B.pin_memory()
        return replace(self, clean_BS=clean, heard_BS=heard, clip_id_B=self.clip_id_B.pin_memory(), speaker_B=speaker_B)

    def to(self, device: torch.device) -> Batch:
        same = self.heard_BS is self.clean_BS
        clean = self.clean_BS.to(device, non_blocking=True)
        heard = clean if same else self.heard_BS.to(device, non_blocking=True)
        speaker_B = None if self.speaker_B is None else self.speaker_B.to(device, non_blocking=True)
        clip_id_B = self.clip_id_B.to(device, non_blocking=True)
        return replace(self, clean_BS=clean, heard_BS=heard, clip_id_B=clip_id_B, speaker_B=speaker_B)


def collate(items: Sequence[tuple[Sample | None, list[Failure]]]) -> Batch:
    """Collates the windows that could be read, and all failures; an empty batch if none could."""
    samples = [sample for sample, _ in items if sample is not None]
    clean = _padded([sample.clean for sample in samples])
    heard = clean
    if any(sample.heard is not sample.clean for sample in samples):
        heard = _padded([sample.heard for sample in samples])
    return Batch(
        clean,
        heard,
        tuple(len(sample.clean) for sample in samples),
        torch.tensor([sample.clip_id for sample in samples], dtype=torch.int64),
        tuple(sample.window for sample in samples),
        tuple(sample.name for sample in samples),
        tuple(failure for _, failures in items for failure in failures),
        torch.tensor([sample.speaker for sample in samples], dtype=torch.int64),
    )


def _padded(waveforms: list[Waveform]) -> torch.Tensor:
    longest = max(map(len, waveforms), default=0)
    padded = np.empty((len(waveforms), longest), np.float32)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = waveform
        padded[row, len(waveform) :] = 0
    return torch.from_numpy(padded)
