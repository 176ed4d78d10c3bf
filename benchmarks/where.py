"""Where the time of a training step goes: operations, their limit and measured time, by part.

For each size, frontend and phase: matrix products and convolutions of one update on 8 clips of 5 s
(GFLOP), the time they take at the machine's rate for square matrix products in the same precision,
and the measured time (forward and backward, median of the runs). Time outside the named parts is
"rest": norms, dropout, residual connections, masks, loss, metrics, Python. The last line is an
update on 8 clips of a single frame: what an update costs whatever the batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from benchmarks.train_step import CLIPS, Bench, Rates, flop_counter, machine_rates
from sjepa.core.allocation import keep_freed_memory
from sjepa.core.frames import SPEECH
from sjepa.modules.transformer import Attention, FeedForward
from sjepa.s_jepa.modules.positions import ConvPositions
from sjepa.s_jepa.rehearsal import TrainingStep, noise_batch

REST = "rest"
PARTS = ("frontend", "positions", "attention", "feed-forward", "head", "targets", "mixture", "EMA", "optimiser", REST)


@dataclass(frozen=True)
class Spent:
    """One part of an update: operations, seconds at the machine's rate, measured seconds."""

    part: str
    gflop: float
    limit: float
    seconds: float


class Split:
    """Attributes what a counter (time, operations) advances by to the innermost named part."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._read, self._parts, self._last = read, [REST], read()

    def enter(self, part: str) -> None:
        self._attribute()
        self._parts.append(part)

    def leave(self) -> None:
        self._attribute()
        self._parts.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        depth = len(self._parts)
        self.enter(name)
        try:
            yield
        finally:
            self._attribute()
            del self._parts[depth:]  # with parts of which nothing tells the end

    def _attribute(self) -> None:
        now = self._read()
        self.spent[self._parts[-1]] += now - self._last
        self._last = now


@contextmanager
def watched(step: TrainingStep, split: Split) -> Iterator[None]:
    """Within the context `split` is told of all parts of the updates of `step`."""
    model, learner, targets = step.learner.network, step.learner, step.targets
    handles: list[Any] = []
    for module in model.modules():
        part = {ConvPositions: "positions", Attention: "attention", FeedForward: "feed-forward"}.get(type(module))
        if part or module is model.head:
            handles += _watch(module, part or "head", split)
    encoder = model.encoder
    handles += _watch_forward(encoder.feature_extractor, "frontend", split)
    handles += _watch_forward(encoder.feature_projection, "frontend", split)
    # in backward the frontend is last
    handles.append(encoder.feature_projection.register_full_backward_pre_hook(lambda *_: split.enter("frontend")))
    methods = [(learner, name, "optimiser") for name in ("zero_grad", "clip_gradients", "step")]
    methods += [(targets, name, "mixture") for name in ("observe", "posteriors", "after_update")]
    methods += [(targets, "source", "targets"), (learner, "backward", REST)]
    if targets.encoder is not None:
        methods.append((targets.encoder, "follow", "EMA"))
    for owner, name, part in methods:
        setattr(owner, name, _timed(getattr(owner, name), part, split))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for owner, name, _ in methods:
            delattr(owner, name)


def _watch_forward(module: nn.Module, part: str, split: Split) -> list[Any]:
    enter = module.register_forward_pre_hook(lambda *_: split.enter(part))
    return [enter, module.register_forward_hook(lambda *_: split.leave())]


def _watch(module: nn.Module, part: str, split: Split) -> list[Any]:
    enter = module.register_full_backward_pre_hook(lambda *_: split.enter(part))
    return [*_watch_forward(module, part, split), enter, module.register_full_backward_hook(lambda *_: split.leave())]


def _timed(method: Callable[..., Any], part: str, split: Split) -> Callable[..., Any]:
    @wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with split.part(part):
            return method(*args, **kwargs)

    return timed


def times(bench: Bench, step: TrainingStep) -> dict[str, float]:
    """Median seconds of every part. (On a GPU each part is waited for, so that the sum is more than
    an undisturbed update takes.)"""

    def clock() -> float:
        bench.sync()
        return time.perf_counter()

    step()
    found = []
    for _ in range(bench.runs):
        split = Split(clock)
        with watched(step, split):
            step()
        found.append(split.spent)
    return {part: statistics.median(spent[part] for spent in found) for part in PARTS}


def gflops(step: TrainingStep) -> Mapping[str, float]:
    with flop_counter() as counter:
        split = Split(lambda: counter.get_total_flops() / 1e9)
        with watched(step, split):
            step()
    return split.spent


def where(bench: Bench, frontend: str, phase: int, clips: int, seconds: float, rates: Rates) -> list[Spent]:
    """Every part of an update; the last row is an update on clips of one frame."""
    step = bench.step(noise_batch([round(seconds * SPEECH.sample_rate)] * clips), phase, frontend=frontend)
    counted, measured = gflops(step), times(bench, step)
    found = []
    for part in PARTS:
        is_float32 = part in ("positions", "mixture") or (part == "targets" and phase == 1)
        rate = rates.fp32 if is_float32 or bench.engine.precision == "fp32" else rates.bf16
        found.append(Spent(part, counted.get(part, 0.0), counted.get(part, 0.0) * 1e9 / rate, measured[part]))
    least = bench.step(noise_batch([SPEECH.samples(1)] * clips), phase, frontend=frontend)
    without_audio = times(bench, least)
    found.append(Spent("one frame", 0.0, 0.0, sum(without_audio.values())))
    fixed = sum(without_audio[part] for part in PARTS if part not in ("optimiser", "EMA"))
    return [*found, Spent("one frame, without optimiser and EMA", 0.0, 0.0, fixed)]


def print_table(title: str, phases: Mapping[int, list[Spent]], audio: float) -> None:
    """One line per part, three columns per phase."""

    def line(name: str, *cells: str) -> None:
        print(f"{name:<38}" + "".join(f"{cell:>12}" for cell in cells))

    print(f"\n{title}")
    line("", *(cell for phase in phases for cell in (f"{phase}: GFLOP", "limit ms", "ms")))
    for rows in zip(*phases.values(), strict=True):
        line(rows[0].part, *(f"{cell:.1f}" for row in rows for cell in (row.gflop, 1e3 * row.limit, 1e3 * row.seconds)))
    limit, took = (
        [sum(getattr(row, name) for row in rows if row.part in PARTS) for rows in phases.values()]
        for name in ("limit", "seconds")
    )
    pairs = list(zip(limit, took, strict=True))
    line("update", *(cell for least, own in pairs for cell in ("", f"{1e3 * least:.1f}", f"{1e3 * own:.1f}")))
    line(
        "audio s/s, share of limit",
        *(cell for least, own in pairs for cell in (f"{audio / own:.1f}", f"{least / own:.0%}", "")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--frontends", nargs="*", default=["waveform", "logmel"])
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny only, two runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes, runs = (["tiny"], 2) if options.quick else (options.sizes, options.runs)
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    rates = machine_rates(options.device)
    print(f"matrix products: {rates.fp32 / 1e9:,.0f} GFLOP/s in fp32, {rates.bf16 / 1e9:,.0f} in bf16")
    record = {}
    for size, frontend in itertools.product(sizes, options.frontends):
        bench = Bench(size, options.device, runs=runs, precision=options.precision)
        phases = {phase: where(bench, frontend, phase, options.clips, options.seconds, rates) for phase in (1, 2)}
        title = f"{size}, {frontend}, {bench.engine.precision}, {options.clips} clips of {options.seconds:g} s"
        print_table(title, phases, options.clips * options.seconds)
        record[title] = {phase: [asdict(row) for row in rows] for phase, rows in phases.items()}
    if options.json:
        print(json.dumps({"rates": rates._asdict(), "parts": record}))


if __name__ == "__main__":
    main()
