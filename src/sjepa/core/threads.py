"""CPU threads on a shared machine: usable cores, OpenMP busy-waiting, scheduler time slices."""

from __future__ import annotations

import os
import struct
import sys

# libgomp: iterations; LLVM and Intel: milliseconds
_SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
_SAME_MATTER = (*_SPINS, "OMP_WAIT_POLICY", "KMP_LIBRARY")
_TURN_NANOSECONDS = 100_000  # the minimum that Linux allows
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr and sched_getattr
_ATTRIBUTES = "=IIQiIQQQ"  # size, policy, flags, nice, priority, runtime, deadline, period


def limit_spinning() -> None:
    """Shortens the busy-waiting of OpenMP threads at barriers, which wastes cores that other
    programs need, unless the environment configures it. Call before torch is imported; child
    processes inherit it."""
    if not any(name in os.environ for name in _SAME_MATTER):
        os.environ.update(_SPINS)


def usable_cores() -> int:
    """Number of cores this process may use: CPU affinity, limited by its cgroup quota."""
    # joblib.cpu_count may return 1 without multiprocessing
    from joblib.externals.loky import cpu_count

    return int(cpu_count())


def take_short_turns() -> None:
    """Requests a scheduler time slice of 0.1 ms instead of about 3 ms (Linux 6.12 or later). The
    share of CPU time is unchanged, but threads at a barrier wait less for a preempted one. Applies
    to this thread and those it starts, under the default policy only; a no-op on other systems."""
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
