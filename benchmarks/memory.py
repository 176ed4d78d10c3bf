"""Peak memory of a phase-2 update (base, 8 clips of 5 s, K = 500, layer 2) against an AdamW update
of `transformers.HubertModel` on the same batch plus a copy of its weights; separate processes, two
threads. In GiB, lower is better: `ratio` is ours ÷ baseline. Last row: with gradient
checkpointing."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from multiprocessing.connection import Connection

import torch

from benchmarks.table import Row, report
from benchmarks.train_step import CLIPS, Bench
from sjepa.core.frames import SPEECH
from sjepa.s_jepa.rehearsal import noise_batch

_UPDATES = 3


def _peak(kind: str, sender: Connection) -> None:
    torch.set_num_threads(2)
    bench = Bench("base", "cpu", runs=1)
    batch = noise_batch([5 * SPEECH.sample_rate] * CLIPS)
    if kind == "ours":
        work = bench.step(batch, 2)
    elif kind == "recomputed":
        work = bench.step(batch, 2, recomputes=True)
    else:
        work = bench.hubert(batch, "sdpa", torch.bfloat16, updates=True)
    for _ in range(_UPDATES):
        work()
    unit = 1 << 30 if sys.platform == "darwin" else 1 << 20  # ru_maxrss: bytes on macOS, else KiB
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def peak_gib(kind: str) -> float:
    """Peak resident memory of a fresh process that makes three updates."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_peak, args=(kind, sender))
    process.start()
    sender.close()  # so that recv raises EOFError if the process dies
    found: float = receiver.recv()
    process.join()
    return found


def measure() -> list[Row]:
    ours, recomputed, hubert = map(peak_gib, ("ours", "recomputed", "hubert"))
    return [
        Row.value("phase2_memory", ours, hubert, ours / hubert, 1.0),
        Row.value("phase2_recomputed", recomputed, ours, recomputed / ours, 1.0),
    ]


if __name__ == "__main__":
    report(measure, __doc__)
