"""Threads that compute together stay on cores of their own."""

import os
import sys
import threading
import time

import pytest

from sjepa.core import apart
from sjepa.core.apart import Apart

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")


@pytest.fixture
def machine(monkeypatch):
    """Threads with the clock ticks they have had and the core they were last on; what was asked of
    the system."""
    threads, asked = {}, []
    monkeypatch.setattr(apart, "_threads", lambda: list(threads))
    monkeypatch.setattr(apart, "_ticks_and_core", lambda thread: threads[thread])
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: asked.append((thread, set(cores))))
    return threads, asked


def test_a_thread_that_shares_a_core_is_moved_and_later_let_go(machine, monkeypatch):
    threads, asked = machine
    team = Apart(3, main=10)
    threads.update({10: (0, 1), 11: (0, 1), 12: (0, 2), 13: (0, 1)})
    assert team.look(1.0) == 0  # nothing is known of how busy they are
    threads.update({10: (90, 1), 11: (99, 1), 12: (80, 2), 13: (1, 1)})  # 13 is idle
    assert team.look(1.0) == 1
    assert asked == [(11, {0, 3})]  # 12 stays alone on its core
    threads.update({10: (180, 1), 11: (190, 0), 12: (170, 2)})
    assert team.look(1.0) == 0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert team.look(1.0) == 0
    assert asked[1:] == [(11, {0, 1, 2, 3})]


def test_the_main_thread_is_never_moved_and_nobody_where_no_core_is_free(machine, monkeypatch):
    threads, asked = machine
    team = Apart(2, main=10)
    threads.update({10: (0, 1), 11: (0, 1)})
    team.look(1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {1})
    threads.update({10: (50, 1), 11: (99, 1)})
    assert team.look(1.0) == 0
    assert asked == []


def test_the_system_tells_ticks_and_cores_of_real_threads():
    stop = threading.Event()
    spinning = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    spinning.start()
    try:
        time.sleep(0.3)
        found = apart._ticks_and_core(spinning.native_id)
    finally:
        stop.set()
        spinning.join()
    assert found[0] > 5
    assert 0 <= found[1] < os.cpu_count()
