"""Non-blocking copies of small values to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """An int64 tensor on `device`, copied without synchronising with the device."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
