"""Small tensors on a device: non-blocking copies, and the lengths of clips. B batch, S samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """An int64 tensor on `device`, copied without synchronising with the device."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def given_lengths(num_samples_B: torch.Tensor | None, waveform_BS: torch.Tensor) -> torch.Tensor:
    """`num_samples_B`, or if it is None the length of the waveforms for each clip."""
    if num_samples_B is not None:
        return num_samples_B
    return torch.full((len(waveform_BS),), waveform_BS.shape[1], device=waveform_BS.device)
