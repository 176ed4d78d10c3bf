"""Reuse of freed memory on a CPU."""

from __future__ import annotations

import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_SAME_MATTER = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Keeps freed tensors for the next ones instead of returning them to the system, which then has
    to clear every page again. For training, which makes the same sizes again and again; what stays
    among them is collected in one tensor (`GrowingRows`). Linux with glibc only, unless the
    environment configures the allocator; a no-op elsewhere."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SAME_MATTER):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
