"""Threads on a machine that others use too: how many, and that they do not keep a core busy with waiting."""

from __future__ import annotations

import os
import struct
import sys

_SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}  # GNU's OpenMP: rounds; LLVM's and Intel's: milliseconds
_SAME_MATTER = (*_SPINS, "OMP_WAIT_POLICY", "KMP_LIBRARY")
_TURN_NANOSECONDS = 100_000  # the shortest that Linux gives
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr and sched_getattr
_ATTRIBUTES = "=IIQiIQQQ"  # size, policy, flags, nice, priority, runtime, deadline, period


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


def take_short_turns() -> None:
    """Asks Linux (from 6.12) for turns of 0.1 ms instead of some 3 ms where other programs want the same core. The share of
    the core stays what it is, but threads that wait for each other wait less for the one whose turn has not come. For this
    thread and those that it will start; other systems and priorities stay as they are."""
    numbers = _SYSTEM_CALLS.get(os.uname().machine) if sys.platform.startswith("linux") else None
    if numbers is None:
        return
    import ctypes

    call = ctypes.CDLL(None).syscall
    found = ctypes.create_string_buffer(struct.calcsize(_ATTRIBUTES))
    if call(numbers[1], 0, found, len(found), 0):
        return
    size, policy, flags, nice, priority, turn, *others = struct.unpack(_ATTRIBUTES, found.raw)
    if policy == os.SCHED_OTHER and not 0 < turn <= _TURN_NANOSECONDS:
        call(
            numbers[0], 0, struct.pack(_ATTRIBUTES, size, policy, flags, nice, priority, _TURN_NANOSECONDS, *others), 0
        )
