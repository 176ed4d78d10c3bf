import os
import subprocess
import sys

import pytest
import torch

from sjepa.core import distributed
from sjepa.core.distributed import Engine
from sjepa.core.threads import usable_cores

NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "KMP_LIBRARY")


def seen(**settings: str) -> list[str]:
    """What the variables are when torch is loaded by a process that is started with `settings`."""
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    program = f"import sjepa.s_jepa.metrics, os; print(*(os.environ.get(name) for name in {NAMES}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**plain, **settings}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_threads_wait_a_short_while_unless_the_user_says_otherwise():
    assert seen() == ["10000", "1", "None", "None"]
    assert seen(OMP_WAIT_POLICY="ACTIVE") == ["None", "None", "ACTIVE", "None"]
    assert seen(GOMP_SPINCOUNT="5") == ["5", "None", "None", "None"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cores_are_those_of_the_affinity():
    program = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); from sjepa.core.threads import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("had", "cores", "has"), [(1, 8, 1), (3, 2, 2)])
def test_an_engine_takes_threads_away_and_never_adds_any(had, cores, has, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(distributed, "usable_cores", lambda: cores)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(had)
        Engine(device="cpu", precision="fp32")
        assert torch.get_num_threads() == has
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("command", ["trainsjepa", "runinfer"])
def test_commands_print_on_a_terminal_of_few_letters(command):
    program = f"import sys; from sjepa.entrypoints import cli; sys.argv = ['{command}', '--help-config']; sys.exit(cli.{command}())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u" in done.stdout or b"\\x" in done.stdout


def test_short_turns_are_asked_for_and_inherited():
    """Of the threads that come after; niceness stays. Linux from 6.12 on says what it gives."""
    program = """
import ctypes, os, struct, threading
from sjepa.core import threads
_, numbers = None, threads._SYSTEM_CALLS[os.uname().machine]
def turn():
    found = ctypes.create_string_buffer(struct.calcsize(threads._ATTRIBUTES))
    assert ctypes.CDLL(None).syscall(numbers[1], 0, found, len(found), 0) == 0
    fields = struct.unpack(threads._ATTRIBUTES, found.raw)
    seen.append((fields[5], fields[3]))
seen = []
turn()
threads.take_short_turns()
turn()
other = threading.Thread(target=turn)
other.start()
other.join()
print(*(value for pair in seen for value in pair))
"""
    if not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("for Linux on x86-64 and aarch64")
    done = subprocess.run(
        ["nice", "-n", "3", sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    before, nice, *after = map(int, done.stdout.split())
    if before == 0:
        pytest.skip("this Linux has no turns of a thread's own")
    assert after == [100_000, nice, 100_000, nice]
