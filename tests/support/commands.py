"""The commands, each in a process of its own.

They are forked from a process that has imported everything, so that a start takes milliseconds and
not seconds. `command(…, installed=True)` starts the installed script instead, as a user does.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

BIN = Path(sys.executable).parent

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["tests.support.commands", "sjepa.entrypoints.cli", "sjepa.entrypoints.systems", "sjepa.entrypoints.train", "sjepa.entrypoints.evaluate",
     "sjepa.entrypoints.export", "sjepa.entrypoints.build_h5", "sjepa.reporting.plots", "tests.support.runs"]
)  # fmt: skip
_started = []


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def _child(arguments, cwd, environment, output, errors):
    """Runs in the new process: the command as its script does it."""
    for number, target in ((1, output), (2, errors)):
        file = os.open(target, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # as in a process of its own: workers are forked
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(arguments)
    from sjepa.entrypoints import cli

    code = 1
    try:
        code = getattr(cli, Path(arguments[0]).name)()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


class Started:
    """A command that is running, with the part of subprocess.Popen that tests use."""

    def __init__(self, arguments, cwd, environment):
        self._folder = Path(tempfile.mkdtemp())
        output, self._errors = self._folder / "stdout", self._folder / "stderr"
        os.mkfifo(output)
        self._errors.touch()
        self._process = processes.Process(
            target=_child,
            args=([str(item) for item in arguments], str(cwd), environment, str(output), str(self._errors)),
        )
        self._process.start()
        self.pid = self._process.pid
        self.stdout = output.open()  # waits for the child
        _started.append(self)

    @property
    def returncode(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout=60):
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(self._errors.read_text())
        return self.returncode

    def communicate(self, timeout=60):
        """The rest of its output, and its errors."""
        output = self.stdout.read()
        self.wait(timeout)
        self.stdout.close()
        return output, self._errors.read_text(errors="replace")


def start(name, *arguments, cwd, **environment):
    """Starts a command."""
    return Started([BIN / name, *arguments], cwd, {**os.environ, "OMP_NUM_THREADS": "1", **environment})


def command(name, *arguments, cwd, installed=False, **environment):
    """Runs a command to its end."""
    if installed:
        done = subprocess.run(
            [str(BIN / name), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=900,
            env={**os.environ, **environment}, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)
    process = start(name, *arguments, cwd=cwd, **environment)
    output, errors = process.communicate(900)
    return Done(process.returncode, output, errors)


@pytest.fixture(autouse=True, scope="session")
def no_process_left():
    """Ends what failed tests have left running."""
    yield
    for one in _started:
        if one.returncode is None:
            with suppress(ProcessLookupError):
                one.kill()


def wait_until(true, seconds=20):
    """Waits for something that another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
