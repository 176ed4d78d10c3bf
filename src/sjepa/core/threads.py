"""Threads on a machine that others use too: how many, and that they do not keep a core busy with waiting."""

from __future__ import annotations

import os

_SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}  # GNU's OpenMP: rounds; LLVM's and Intel's: milliseconds
_SAME_MATTER = (*_SPINS, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def limit_spinning() -> None:
    """OpenMP's threads wait for each other in a loop, even on a core that another program needs. They do so for a short
    while only, unless the environment says something of that. Takes effect before torch is loaded, here and in processes
    that are started."""
    if not any(name in os.environ for name in _SAME_MATTER):
        os.environ.update(_SPINS)


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, within the quota of its control group."""
    from joblib.externals.loky import cpu_count  # joblib's own may say 1 for reasons of its own

    return int(cpu_count())
