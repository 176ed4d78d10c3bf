"""Training step time against `transformers.HubertModel` of the same size and the peak
matrix-product throughput of the machine.

`python -m benchmarks.train_step` prints the rows of the speed table (base, 8 clips of 5 s).
`--sizes tiny small base --seconds 5 15` prints for each the time of every part, seconds of audio
per second, FLOPs and FLOP utilisation; and the cost of padding in random and length-bucketed
batches. `--device cuda` runs on a GPU and also prints peak memory. All in one process, on the same
noise clips; medians.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertModel

from benchmarks.table import Row, print_rows
from sjepa.core.allocation import keep_freed_memory
from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.dataset.batch import Batch
from sjepa.dataset.order import bucketed_batches, fixed_batches
from sjepa.s_jepa.network import build_model
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.rehearsal import TrainingStep, noise_batch
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.sizes import hyperparameters

CLIPS = 8
LAYER = 2
_MATRIX = 2048


class Rates(NamedTuple):
    """FLOP/s of square matrix products."""

    fp32: float
    bf16: float


@dataclass(frozen=True)
class Timing:
    """One part on one batch: median seconds, audio seconds per second, GFLOP, utilisation of the
    peak rate (NaN if FLOPs were not counted)."""

    part: str
    seconds: float
    audio_rate: float
    gflop: float
    share: float


class Bench:
    """Benchmarks of one model size on one device."""

    def __init__(self, size: str, device: str, *, runs: int, precision: str = "auto") -> None:
        self.size, self.runs = size, runs
        self.engine = Engine(device=device, precision=precision, launch=False)
        self.values = hyperparameters(size, {})

    def sync(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of `runs`, after one warm-up run."""
        work()
        self.sync()
        found = []
        for _ in range(self.runs):
            started = time.perf_counter()
            work()
            self.sync()
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    def alternating(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """Median time of each, with runs interleaved so that machine load affects all equally."""
        for work in works:
            work()
        self.sync()
        found: list[list[float]] = [[] for _ in works]
        for _ in range(self.runs):
            for own, work in zip(found, works, strict=True):
                started = time.perf_counter()
                work()
                self.sync()
                own.append(time.perf_counter() - started)
        return [statistics.median(own) for own in found]

    def hubert(
        self, batch: Batch, attention: str, dtype: torch.dtype | None, *, updates: bool = False
    ) -> Callable[[], object]:
        """Forward and backward of HuBERT in training mode, without SpecAugment and LayerDrop; with
        `updates` also AdamW and a copy of the weights."""
        values = self.values
        config = HubertConfig(
            hidden_size=values.width, num_hidden_layers=values.num_layers, num_attention_heads=values.num_heads,
            intermediate_size=values.ffn_width, conv_dim=[values.conv_channels] * 7, layerdrop=0.0,
            mask_time_prob=0.0, mask_feature_prob=0.0, feat_proj_dropout=0.1, activation_dropout=0.1,
            attn_implementation=attention,
        )  # fmt: skip
        model = HubertModel(config).to(self.engine.device).train()
        waveform = batch.clean_BS.to(self.engine.device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True) if updates else None
        average = copy.deepcopy(model) if updates else None

        def work() -> None:
            model.zero_grad(set_to_none=True)
            with torch.autocast(self.engine.device.type, dtype=dtype, enabled=dtype is not None):
                loss = model(waveform).last_hidden_state.float().square().mean()
            loss.backward()
            if optimizer is not None and average is not None:
                optimizer.step()

        return work

    def encoder(self, batch: Batch) -> Callable[[], object]:
        """Forward and backward of the S-JEPA encoder only, in training mode."""
        config = load_config(None, [f"model.size={self.size}"])
        model = self.engine.to_device(build_model(config, plan(config, 10).at(0), note=lambda _: None)).encoder
        model.train()
        waveform = batch.clean_BS.to(self.engine.device)

        def work() -> None:
            model.zero_grad(set_to_none=True)
            with self.engine.autocast():
                features = model(waveform, batch.lengths()).features_BTD
            features.float().square().mean().backward()

        return work

    def step(
        self,
        batch: Batch,
        phase: int,
        *,
        recomputes: bool = False,
        frontend: str = "waveform",
        micro_batches: int = 1,
        first: int = 0,
        compiled: bool = False,
    ) -> TrainingStep:
        """A full update without LayerDrop. `first`: number of the first update."""
        clusters = 500 if phase == 2 else 100
        config = load_config(None, [f"model.size={self.size}", f"train.phase={phase}", f"gmm.num_clusters={clusters}",
                                    "gmm.ema_layer=-1", "model.overrides={layer_drop: 0}", f"model.frontend={frontend}",
                                    f"train.activation_checkpointing={str(recomputes).lower()}",
                                    f"train.compile={str(compiled).lower()}",
                                    f"dataset.max_seconds={max(16.0, batch.clean_BS.shape[1] / 16000)}"])  # fmt: skip
        return TrainingStep(self.engine, config, [batch] * micro_batches, layer=LAYER, first=first)


def machine_rates(device: str) -> Rates:
    """Best of eight square matrix products of size 2,048 (8,192 on a GPU); of a smaller one where
    the processor has no instructions for the precision, which takes it minutes."""
    size = _MATRIX if device == "cpu" else 4 * _MATRIX

    def rate(dtype: torch.dtype, size: int) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            (a @ b)[0, 0].item()
            best = min(best, time.perf_counter() - started)
        return 2 * size**3 / best

    small = size // 8
    found = [rate(dtype, small) for dtype in (torch.float32, torch.bfloat16)]
    return Rates(rate(torch.float32, size), rate(torch.bfloat16, size) if found[1] > found[0] / 10 else found[1])


def flop_counter() -> FlopCounterMode:
    """Counts matrix products and convolutions."""

    def in_place(_own: Any, a_shape: Any, b_shape: Any, **_: Any) -> int:
        return 2 * math.prod(a_shape) * int(b_shape[-1])

    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place, torch.ops.aten.addmm_: in_place}
    )


def operations(work: Callable[[], object]) -> float:
    """FLOPs of matrix products and convolutions in one call."""
    with flop_counter() as counter:
        work()
    return float(counter.get_total_flops())


def detailed(size: str, seconds: float, device: str, runs: int, rates: Rates) -> list[Timing]:
    """Timings of all parts for one size and clip length."""
    bench, batch = Bench(size, device, runs=runs), noise_batch([round(seconds * SPEECH.sample_rate)] * CLIPS)
    parts: list[tuple[str, Callable[[], Callable[[], object]]]] = [
        (f"HuBERT {name} {attention}", partial(bench.hubert, batch, attention, dtype))
        for name, dtype in (("fp32", None), ("bf16", torch.bfloat16))
        for attention in ("eager", "sdpa")
    ]
    parts += [
        ("encoder", partial(bench.encoder, batch)),
        ("phase 1 step", partial(bench.step, batch, 1)),
        ("phase 2 step", partial(bench.step, batch, 2)),
    ]
    found = []
    for name, build in parts:
        work = build()
        took, counted = bench.seconds(work), operations(work)
        limit = rates.fp32 if "fp32" in name else rates.bf16
        found.append(Timing(name, took, CLIPS * seconds / took, counted / 1e9, counted / took / limit))
    return found


def padding(size: str, seconds: float, device: str, runs: int) -> list[Timing]:
    """Phase-1 steps on clips of 50 to 100% of the length: random batches, and length-bucketed ones
    of the same padded size."""
    rng, bench = np.random.default_rng(1), Bench(size, device, runs=runs)
    lengths = rng.integers(round(8000 * seconds), round(16000 * seconds), 8 * CLIPS)
    plans = {
        "random batches": fixed_batches(len(lengths), CLIPS, seed=0, epoch=0),
        "length-bucketed": bucketed_batches(lengths, round(16000 * seconds) * CLIPS, seed=0, epoch=0),
    }
    found = []
    for name, batches in plans.items():
        audio = took = 0.0
        for chosen in batches[:4]:
            batch = noise_batch(lengths[chosen].tolist())
            took += bench.seconds(bench.step(batch, 1))
            audio += batch.total_samples / SPEECH.sample_rate
        found.append(Timing(f"phase 1, {name}", took, audio / took, float("nan"), float("nan")))
    return found


def target_rows(size: str, device: str, runs: int) -> list[Row]:
    """The rows of the speed table, with interleaved runs."""
    bench, batch = Bench(size, device, runs=runs), noise_batch([5 * SPEECH.sample_rate] * CLIPS)
    plain = Bench(size, device, runs=runs, precision="fp32")
    names = ("eager", "sdpa", "encoder", "phase 1", "phase 2", "fp32 encoder", "fp32 HuBERT")
    works = [
        bench.hubert(batch, "eager", torch.bfloat16),
        bench.hubert(batch, "sdpa", torch.bfloat16),
        bench.encoder(batch),
        bench.step(batch, 1),
        bench.step(batch, 2),
        plain.encoder(batch),
        plain.hubert(batch, "sdpa", None),
    ]
    took = dict(zip(names, bench.alternating(works), strict=True))
    hubert = min(took["eager"], took["sdpa"])
    return [
        Row.speedup("encoder_fwd_bwd", took["encoder"], hubert, 1.3),
        Row.speedup("phase1_step", took["phase 1"], hubert, 0.9),
        Row.speedup("phase2_step", took["phase 2"], took["phase 1"], 0.77),
        Row.speedup("encoder_fp32", took["fp32 encoder"], took["fp32 HuBERT"], 1.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=[], help="also every part, for these sizes")
    parser.add_argument("--seconds", nargs="*", type=float, default=[5.0, 15.0], help="of the clips, for --sizes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.runs = 1 if options.quick else options.runs
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rates = machine_rates(options.device)
    print(f"matrix products: {rates.fp32 / 1e9:,.0f} GFLOP/s in fp32, {rates.bf16 / 1e9:,.0f} in bf16")
    details: dict[str, list[Timing]] = {}
    for size, seconds in itertools.product(options.sizes, options.seconds):
        name = f"{size}, {CLIPS} clips of {seconds:g} s"
        details[name] = detailed(size, seconds, options.device, options.runs, rates)
        details[name] += padding(size, seconds, options.device, options.runs)
        print(f"\n{name}\n{'':4}{'part':<28}{'seconds':>9}{'audio s/s':>11}{'GFLOP':>9}{'of limit':>10}")
        for timing in details[name]:
            print(
                f"{'':4}{timing.part:<28}{timing.seconds:>9.3f}{timing.audio_rate:>11.1f}"
                + ("" if math.isnan(timing.gflop) else f"{timing.gflop:>9.0f}{timing.share:>10.0%}")
            )
    if options.device == "cuda":
        print(f"memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most")
    rows = target_rows("base", options.device, options.runs)
    print_rows(rows)
    if options.json:
        record = {"rows": [asdict(row) for row in rows], "rates": rates._asdict()}
        record["details"] = {name: [asdict(timing) for timing in own] for name, own in details.items()}
        print(json.dumps(record))


if __name__ == "__main__":
    main()
