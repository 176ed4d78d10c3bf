"""TensorBoard events, on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError


def event_writer(folder: Path) -> Any:
    """A writer of events below `folder`. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "logging.tensorboard: TensorBoard is not installed (pip install 'sjepa[tensorboard]')"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
