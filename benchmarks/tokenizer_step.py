"""Speed of stage 1 of the tokenizer: an update, its operations, the share of the machine's rate.

`python -m benchmarks.tokenizer_step [--sizes tiny] [--clips 8] [--seconds 2] [--profile]`: an
update with the spectral loss and the EMA target; matrix products and convolutions are counted
(GFLOP), and compared with the rate of square matrix products in the same precision. --profile:
the 12 operators with the most time of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.train_step import flop_counter, machine_rates, noise_batch
from sjepa.config.load import load_config
from sjepa.core.allocation import keep_freed_memory
from sjepa.core.distributed import Engine
from sjepa.core.learner import Learner
from sjepa.tokenizer.method import network_shape, step_settings
from sjepa.tokenizer.metrics import ErrorSums
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.schema import SCHEMA
from sjepa.tokenizer.sizes import RATES
from sjepa.tokenizer.step import jepa_update
from sjepa.tokenizer.targets import TokenTargets
from sjepa.training.optimizer import build_adamw

_WARM_UP, _RUNS = 3, 8
_SPECTRAL = ["train.spectral_warmup=1.0", "train.spectral_context=0.16"]


class TokenStep:
    """An update of a named size on noise."""

    def __init__(self, size: str, clips: int, seconds: float) -> None:
        given = [f"model.size={size}", f"dataset.sample_rate={RATES[size]}", "model.overrides={dropout: 0.0}"]
        config = load_config(SCHEMA, None, [*given, *_SPECTRAL])
        torch.manual_seed(0)
        self._engine = Engine(device="cpu", precision="fp32", launch=False)
        self._network = TokenJEPA(network_shape(config))
        self._targets = TokenTargets(self._network.encoder)
        build = partial(build_adamw, lr=1e-3, weight_decay=1e-3, betas=(0.8, 0.99))
        self._learner = Learner(self._engine, self._network, build)
        self._learner.model.train()
        self._settings, self._sums = step_settings(config), ErrorSums(self._engine.device)
        self._batch, self._number = noise_batch([round(seconds * RATES[size])] * clips), 0

    def __call__(self) -> None:
        jepa_update(
            self._learner,
            self._targets,
            [self._batch],
            number=self._number,
            settings=self._settings,
            sums=self._sums,
            spectral=True,
        )
        self._targets.encoder.follow(self._network.encoder, 0.99)
        self._number += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer_step", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=["tiny"], choices=list(RATES))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    rate = machine_rates("cpu").fp32
    print(f"{torch.get_num_threads()} threads, square products {rate / 1e9:.0f} GFLOP/s")
    for size in options.sizes:
        step = TokenStep(size, options.clips, options.seconds)
        for _ in range(_WARM_UP):
            step()
        times = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        with flop_counter() as counter:
            step()
        flop, seconds = counter.get_total_flops(), statistics.median(times)
        audio = options.clips * options.seconds / seconds
        print(
            f"{size}: {seconds * 1e3:.0f} ms, {flop / 1e9:.1f} GFLOP, {flop / seconds / rate:.0%}, {audio:.0f} s audio/s"
        )
        if options.profile:
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                step()
            print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
