"""Threads that compute together, kept on cores of their own while other programs compete for them.

A scheduler that balances cores by the number of threads is content with two of ours on one core and two of other programs on
the next. Threads that wait for each other then take twice as long. Linux alone.
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
    """Looks at the busiest `team` threads of this process. One that shares a core with another is kept off the cores of the
    others for a while; never the main thread, whose cores the processes that it starts inherit."""

    team: int
    main: int = field(default_factory=os.getpid)
    _used: dict[int, int] = field(default_factory=dict)  # clock ticks, by thread
    _held: dict[int, float] = field(default_factory=dict)  # until when, by thread

    def look(self, seconds: float) -> int:
        """`seconds` after the look before; how many threads were moved."""
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
        for thread in sorted(busiest, key=lambda thread: thread != self.main):  # it comes first, so it stays
            core = now[thread][1]
            free = allowed - taken - used_cores or allowed - taken
            if core in taken and free:
                self._hold(thread, free)
                core, moved = min(free), moved + 1
            taken.add(core)
        self._release(allowed)
        return moved

    def _hold(self, thread: int, cores: set[int]) -> None:
        with contextlib.suppress(OSError):  # it is gone
            os.sched_setaffinity(thread, cores)
            self._held[thread] = time.monotonic() + _SECONDS_HELD

    def _release(self, allowed: set[int]) -> None:
        for thread in [thread for thread, until in self._held.items() if until < time.monotonic()]:
            del self._held[thread]
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, allowed)


@functools.cache  # one in a process
def keep_apart(team: int) -> None:
    """From now on, in a thread that ends with the process. `team`: how many threads compute together. Does nothing where
    there are no cores to choose from."""
    if not sys.platform.startswith("linux") or not 1 < team <= len(os.sched_getaffinity(0)):
        return
    threading.Thread(target=_watch, args=(Apart(team),), name="apart", daemon=True).start()


def _watch(apart: Apart) -> None:
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError, ValueError):  # a system without these files: nothing is done
            apart.look(_SECONDS_BETWEEN_LOOKS)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir(_TASKS)]


def _ticks_and_core(thread: int) -> tuple[int, int] | None:
    """Clock ticks that a thread has had, and the core of its last one (proc(5)); None if it is gone."""
    try:
        fields = (_TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12]), int(fields[36])
