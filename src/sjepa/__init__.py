"""sjepa: train a speech encoder on your own recordings, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sjepa.core.threads import limit_spinning

if TYPE_CHECKING:
    from sjepa.s_jepa.pretrained import load_encoder

limit_spinning()  # before anything loads torch

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name == "load_encoder":  # imports torch, so only when asked for
        from sjepa.s_jepa.pretrained import load_encoder

        return load_encoder
    raise AttributeError(f"module 'sjepa' has no attribute {name!r}")
