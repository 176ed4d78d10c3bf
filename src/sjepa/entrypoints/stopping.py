"""Early termination: graceful stop on signals, SLURM requeueing, failure of a single rank."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sjepa.core.errors import SharedError, UserError
from sjepa.core.ranks import Ranks
from sjepa.training.trainer import Trainer

_SECONDS_FOR_SCONTROL = 60
_SECONDS_TO_BE_ENDED = 2.0
_LOST = re.compile(r"[Cc]onnection (closed|reset)|NCCL|Socket|[Tt]imed out")


def _slurm_job() -> str | None:
    """The SLURM job id of this process, None outside SLURM; array tasks have their own job id."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


@contextmanager
def stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM, SIGINT and, under SLURM, SIGUSR1 finish the update, save and stop; a second
    SIGINT interrupts immediately."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if _slurm_job() and hasattr(signal, "SIGUSR1"):
        numbers.append(signal.SIGUSR1)

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stop_signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told_to_stop(number: int, *, warn: Callable[[str], None]) -> int:
    """Logs how to resume, and requeues the SLURM job on SIGUSR1. Returns the exit code."""
    job, name = _slurm_job(), signal.Signals(number).name
    if name != "SIGUSR1" or job is None:
        warn(f"stopped by {name}; the same command with checkpoint.resume=true resumes it")
        return 128 + number
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS_FOR_SCONTROL, check=False
        )
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        warn(f"stopped by {name}, saved, but job {job} could not be requeued ({problem}); submit it again")
        return 128 + number
    warn(f"stopped by {name}, saved, and job {job} is back in the queue; it resumes if checkpoint.resume is true")
    return 0


def end_of_one(error: Exception, ranks: Ranks) -> int:
    """Handles an error on one of several ranks: errors specific to a rank are reported with its
    number. Returns the exit code for errors that rank 0 reports."""
    if isinstance(error, SharedError):
        return 0  # reported by rank 0
    if isinstance(error, UserError):
        raise UserError(f"process {ranks.rank} of {ranks.size}: {error}") from error
    if not isinstance(error, RuntimeError | ConnectionError) or not _LOST.search(str(error)):
        raise error
    time.sleep(_SECONDS_TO_BE_ENDED)  # time for the launcher to terminate this process
    raise UserError(f"process {ranks.rank} of {ranks.size}: another process failed; see its error message") from error
