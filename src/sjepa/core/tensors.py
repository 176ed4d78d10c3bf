"""Small host values on their way to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """An int64 tensor on `device`, copied without waiting for what the device is doing."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
