"""CPU affinity: keeps the threads of one compute team on distinct cores under CPU contention.

A scheduler that balances the number of runnable threads per core may put two threads of the team
on one core and two threads of other programs on the next. Since the team synchronises at
barriers, its work then takes twice as long. Linux only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_TASKS = Path("/proc/self/task")
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_HELD = 2.0
_BUSY = 0.05  # of a core


@dataclass
class Apart:
    """Monitors the `team` busiest threads of this process. If two share a core, one is pinned
    temporarily to cores the others do not use; never the main thread, whose affinity is inherited
    by child processes."""

    team: int
    main: int = field(default_factory=os.getpid)
    _used: dict[int, int] = field(default_factory=dict)  # CPU time in clock ticks, by thread
    _held: dict[int, float] = field(default_factory=dict)  # release time, by thread

    def look(self, seconds: float) -> int:
        """One check, `seconds` after the previous one. Returns the number of threads moved."""
        now = {thread: found for thread in _threads() if (found := _ticks_and_core(thread)) is not None}
        used = {thread: ticks - self._used.get(thread, ticks) for thread, (ticks, _) in now.items()}
        self._used = {thread: ticks for thread, (ticks, _) in now.items()}
        least = _BUSY * seconds * os.sysconf("SC_CLK_TCK")
        busiest = [
            thread for thread in sorted(used, key=lambda thread: -used[thread])[: self.team] if used[thread] > least
        ]
        allowed, moved = os.sched_getaffinity(self.main), 0
        taken: set[int] = set()
        used_cores = {now[thread][1] for thread in busiest}
        # main thread first: never moved
        for thread in sorted(busiest, key=lambda thread: thread != self.main):
            core = now[thread][1]
            free = allowed - taken - used_cores or allowed - taken
            if core in taken and free:
                self._hold(thread, free)
                core, moved = min(free), moved + 1
            taken.add(core)
        self._release(allowed)
        return moved

    def _hold(self, thread: int, cores: set[int]) -> None:
        with contextlib.suppress(OSError):  # the thread has ended
            os.sched_setaffinity(thread, cores)
            self._held[thread] = time.monotonic() + _SECONDS_HELD

    def _release(self, allowed: set[int]) -> None:
        for thread in [thread for thread, until in self._held.items() if until < time.monotonic()]:
            del self._held[thread]
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, allowed)


@functools.cache  # once per process
def keep_apart(team: int) -> None:
    """Starts the monitor in a daemon thread. `team`: number of compute threads. Does nothing if
    there is only one, or fewer usable cores than threads, or not on Linux."""
    if not sys.platform.startswith("linux") or not 1 < team <= len(os.sched_getaffinity(0)):
        return
    threading.Thread(target=_watch, args=(Apart(team),), name="apart", daemon=True).start()


def _watch(apart: Apart) -> None:
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError, ValueError):  # /proc not available: do nothing
            apart.look(_SECONDS_BETWEEN_LOOKS)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir(_TASKS)]


def _ticks_and_core(thread: int) -> tuple[int, int] | None:
    """CPU time of a thread, clock ticks, and its last core (proc(5)); None if it has ended."""
    try:
        fields = (_TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12]), int(fields[36])
