"""Speed of the tokenizer: an update, its operations, the share of the machine's rate.

`python -m benchmarks.tokenizer_step [--stages 1 2] [--sizes tiny] [--clips 8] [--profile]`: stage 1
on clips of 2 s, with the spectral loss and the EMA target; stage 2 on clips of 1 s, without and
with discriminators, and encoding and decoding of a minute. Matrix products and convolutions are
counted (GFLOP; backward passes of grouped convolutions too high), and compared with the rate of
square matrix products in the same precision. --profile: the 12 operators with the most time of
their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.train_step import flop_counter, machine_rates
from sjepa.config.load import load_config
from sjepa.core.allocation import keep_freed_memory
from sjepa.core.distributed import Engine
from sjepa.core.learner import Learner
from sjepa.s_jepa.rehearsal import noise_batch
from sjepa.tokenizer.codec.method import build_codec
from sjepa.tokenizer.codec.metrics import LossSums
from sjepa.tokenizer.codec.model import token_model
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.step import Losses, LossWeights, frozen, update_decoder, update_judges
from sjepa.tokenizer.codec.tokens import Tokens, decode_pieces, encode_windows
from sjepa.tokenizer.method import network_shape, step_settings
from sjepa.tokenizer.metrics import ErrorSums
from sjepa.tokenizer.modules.discriminators import Discriminators, DiscriminatorShape
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.schema import SCHEMA
from sjepa.tokenizer.sizes import RATES, hyperparameters
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


class CodecStep:
    """An update of stage 2 on noise; its encoder has random weights."""

    def __init__(self, size: str, clips: int, *, adversarial: bool) -> None:
        config = load_config(SCHEMA, None, [f"model.size={size}", f"dataset.sample_rate={RATES[size]}"])
        torch.manual_seed(0)
        self._engine = Engine(device="cpu", precision="fp32", launch=False)
        self.codec = build_codec(config, TokenEncoder(network_shape(config).encoder))
        channels = hyperparameters(size, {}).discriminator_channels
        build = partial(build_adamw, lr=1e-3, weight_decay=1e-3, betas=(0.8, 0.99))
        self._learner = Learner(self._engine, self.codec.decoder, build)
        self._judges = Learner(self._engine, Discriminators(DiscriminatorShape(channels=channels)), build)
        self._losses = Losses(RATES[size], LossWeights(0.1, 2.0, 1.0, 0.1))
        self._sums, self._adversarial = LossSums(self._engine.device), adversarial
        self._batch = noise_batch([RATES[size]] * clips)

    def __call__(self) -> None:
        with frozen(self._judges.network) as judges:
            _, made = update_decoder(
                self.codec,
                self._learner,
                judges if self._adversarial else None,
                [self._batch],
                self._losses,
                self._sums,
                max_norm=1.0,
                news=False,
            )
        if self._adversarial:
            update_judges(self._judges, made, self._sums, max_norm=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer_step", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=["tiny"], choices=list(RATES))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2], choices=(1, 2))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    rate = machine_rates("cpu").fp32
    print(f"{torch.get_num_threads()} threads, square products {rate / 1e9:.0f} GFLOP/s")
    for size in options.sizes:
        if 1 in options.stages:
            report(f"{size}, stage 1", TokenStep(size, options.clips, 2.0), options.clips * 2.0, rate, options.profile)
        if 2 in options.stages:
            for adversarial in (False, True):
                step = CodecStep(size, options.clips, adversarial=adversarial)
                name = f"{size}, stage 2, {'with' if adversarial else 'without'} discriminators"
                report(name, step, options.clips * 1.0, rate, options.profile)
            report_use(size, step.codec)


def report(name: str, step: Callable[[], None], seconds: float, rate: float, profiled: bool) -> None:
    """`seconds`: of audio in a step; `rate`: FLOP/s of square products."""
    spent = median_seconds(step)
    with flop_counter() as counter:
        step()
    flop = counter.get_total_flops()
    share = flop / spent / rate
    print(f"{name}: {spent * 1e3:.0f} ms, {flop / 1e9:.1f} GFLOP, {share:.0%}, {seconds / spent:.0f} s audio/s")
    if profiled:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def report_use(size: str, codec: Codec) -> None:
    """Encoding and decoding as runtok does it."""
    model, seconds = token_model(codec.eval()), 60
    audio = noise_batch([seconds * RATES[size]]).clean_BS[0].numpy()
    frames = [round(value * model.sample_rate / model.hop) for value in (15.0, 1.0)]

    def encode() -> Tokens:
        pieces = encode_windows(model, lambda a, b: audio[a:b], len(audio), longest=frames[0], overlap=frames[1])
        found = np.concatenate(list(pieces))
        return Tokens(found, len(audio), model.sample_rate, model.hop, model.vocabulary, model.identity)

    tokens = encode()
    encoding, decoding = median_seconds(encode), median_seconds(lambda: list(decode_pieces(model, tokens)))
    print(f"{size}: encodes {seconds / encoding:.0f} and decodes {seconds / decoding:.0f} times faster than real time")


def median_seconds(work: Callable[[], object]) -> float:
    for _ in range(_WARM_UP):
        work()
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
