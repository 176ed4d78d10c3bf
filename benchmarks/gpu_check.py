"""One command for a GPU: correctness against the CPU, what a run can be configured to do, speed.

`python -m benchmarks.gpu_check` (or `make gpu_check`) takes at most 8 minutes on one CUDA device
and prints a table of targets for each part and at the end one JSON line, to be sent as a report.
Without a CUDA device the same checks run against the CPU itself with small sizes; their times mean
nothing then.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.table import Row, print_rows
from benchmarks.train_step import Bench, machine_rates, operations
from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.dataset.demo import write_corpus
from sjepa.features.mel_frontend import MelFrontend
from sjepa.features.mfcc import MFCC
from sjepa.gmm.fit import FitSettings, fit_gmm
from sjepa.s_jepa.rehearsal import TrainingStep, noise_batch
from sjepa.s_jepa.step import Forward, Scope, choose_frames, frame_losses, plain_posteriors

# relative differences from float32 on the CPU: of features and loss, and of gradients
TOLERANCES = {"fp32": (1e-4, 2e-3), "bf16": (3e-2, 1e-1), "fp16": (5e-3, 3e-2)}
SPIDR_RATE = 1760.0  # audio s/s on one H100, 12 layers, student and teacher (its paper's figures)


class Sizes(NamedTuple):
    """What is measured: model sizes, clips and seconds of an update, clips of a micro-batch, runs,
    and the frames of the mixture fit."""

    models: tuple[str, ...]
    clips: int
    seconds: float
    micro_batch: int
    runs: int
    frames: int


FULL = Sizes(("base", "small"), 192, 15.0, 48, 3, 50_000)
SMALL = Sizes(("tiny",), 2, 1.0, 2, 1, 4_000)


def difference(ours: Tensor, expected: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in float64 on the CPU."""
    a, b = (tensor.detach().double().cpu() for tensor in (ours, expected))
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def exact_float32() -> None:
    """TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class Outcome(NamedTuple):
    features: Tensor
    loss: Tensor
    gradient: Tensor


def without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        for name in ("probability", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def outcome(step: TrainingStep, engine: Engine, settings: Any) -> Outcome:
    """Features, loss and gradient of the step's network and targets on `engine`."""
    network, targets = (copy.deepcopy(part).to(engine.device) for part in (step.learner.network, step.targets))
    batch = step.window[0].to(engine.device)
    frames = choose_frames(batch, mask_key=1, settings=settings)
    losses = frame_losses(
        Forward(engine, _autocast(engine, network), settings),
        batch,
        frames,
        plain_posteriors(targets, batch),
        Scope(True),
    )
    loss = losses.total() / (len(frames.masked_N) + len(frames.visible_N))
    (loss * 1024 if engine.scales_loss else loss).backward()
    with torch.no_grad(), engine.autocast():
        features = network.eval().encoder(batch.clean_BS, torch.tensor(batch.num_samples, device=engine.device))
    found = [weight.grad for weight in network.parameters() if weight.grad is not None]
    gradient = torch.cat([tensor.flatten().float() for tensor in found])
    return Outcome(features.features_BTD, loss, gradient / 1024 if engine.scales_loss else gradient)


def _autocast(engine: Engine, network: nn.Module) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with engine.autocast():
            return network(*arguments)

    return call


def parity(device: str) -> Iterator[Row]:
    """Features, loss and gradient of both phases and frontends; mel, MFCC, mixture."""
    exact_float32()
    for phase, frontend in ((1, "waveform"), (2, "waveform"), (2, "logmel")):
        torch.manual_seed(phase)
        bench = Bench("tiny", "cpu", runs=1, precision="fp32")
        step = bench.step(noise_batch([32_000, 27_000, 21_000]), phase, frontend=frontend)
        without_dropout(step.learner.network)
        expected = outcome(step, bench.engine, step.settings)
        for precision, (near, gradient) in TOLERANCES.items():
            if device == "cpu" and precision == "fp16":
                continue
            found = outcome(step, Engine(device=device, precision=precision, launch=False), step.settings)
            for name, limit in (("features", near), ("loss", near), ("gradient", gradient)):
                value = difference(getattr(found, name), getattr(expected, name))
                yield Row.value(f"{name}, {frontend} {phase}, {precision}", value, limit, value, limit)
    waveform, lengths = torch.randn(4, 40_000) * 0.1, torch.tensor([40_000, 33_000, 20_000, 900])
    for name, module in (("mel", MelFrontend(statistics="both", geometry=SPEECH)), ("mfcc", MFCC(SPEECH))):
        own, moved = module(waveform, lengths), module.to(device)(waveform.to(device), lengths.to(device))
        value = difference(moved[:3, :60], own[:3, :60])
        yield Row.value(f"{name} frontend", value, 1e-4, value, 1e-4)


def mixture(device: str, frames: int) -> Iterator[Row]:
    """Fit and posteriors: the same frames on both devices."""
    torch.manual_seed(3)
    centres = 4 * torch.randn(20, 39)
    x = centres[torch.randint(20, (frames,))] + torch.randn(frames, 39)
    fits = [fit_gmm(x.to(where), FitSettings(20, seed=0)) for where in ("cpu", device)]
    expected, found = (fit.log_likelihoods[-1] for fit in fits)
    value = abs(found - expected) / abs(expected)
    yield Row.value("mixture fit, likelihood", value, 2e-3, value, 2e-3)
    gmm = fits[0].gmm
    own = gmm.posteriors(x).responsibilities_NK
    value = difference(gmm.to(device).posteriors(x.to(device)).responsibilities_NK, own)
    yield Row.value("mixture posteriors", value, 1e-3, value, 1e-3)


def resumed(device: str) -> Iterator[Row]:
    """20 updates against 10, a state through the disk, and 10 more."""
    exact_float32()
    weights = []
    for stops in (False, True):
        torch.manual_seed(5)
        bench = Bench("tiny", device, runs=1, precision="fp32")
        batch = noise_batch([32_000, 24_000])
        step = bench.step(batch, 2, frontend="logmel")
        for number in range(20):
            if stops and number == 10:
                state = _through_disk({
                    "model": step.learner.network.state_dict(),
                    "optimizer": step.learner.optimizer.state_dict(),
                    "targets": step.targets.state_dict(),
                })  # fmt: skip
                torch.manual_seed(6)
                step = bench.step(batch, 2, frontend="logmel", first=10)
                step.learner.network.load_state_dict(state["model"])
                step.learner.optimizer.load_state_dict(state["optimizer"])
                step.targets.load_state_dict(state["targets"])
            step()
        weights.append(torch.cat([weight.detach().flatten() for weight in step.learner.network.parameters()]))
    value = difference(weights[1], weights[0])
    yield Row.value("20 updates, resumed", value, 1e-5, value, 1e-5)


def _through_disk(state: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(state, file.name)
        return torch.load(file.name, weights_only=True)  # type: ignore[no-any-return]


@contextmanager
def corpus() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name), speakers=8, clips=12)
        yield Path(name)


def command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def trained(folder: Path, device: str, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> tuple[bool, str]:
    """Whether a short run of both phases ends well, and its last line."""
    run = [
        *launcher, command("trainsjepa"),
        f"device={device}", f"dataset.train_path={folder / 'train.zip'}", f"dataset.test_path={folder / 'test.zip'}",
        f"runs_root={folder}", f"run_name={name}", "model.size=tiny", "train.epochs=2", "train.phase2_start_epoch=1",
        "train.batch_size=8", "train.grad_accum=1", "gmm.fit_frames=3000", "gmm.num_clusters=16",
        "gmm.num_clusters_phase2=16", "dataset.num_workers=2", "scheduler.warmup_steps=0.1", *overrides,
    ]  # fmt: skip
    done = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def options(folder: Path, device: str) -> Iterator[Row]:
    """Runs with each option: 1 if the run ended well."""
    torchrun = (command("torchrun"), "--standalone", "--nproc_per_node=1", "--no-python")
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "plain": ((), ()),
        "compile": (("train.compile=true",), ()),
        "probe_memory": (("train.probe_memory=true",), ()),
        "activation_checkpointing": (("train.activation_checkpointing=true",), ()),
        "ddp, torchrun": (("train.strategy=ddp",), torchrun),
        "fsdp, torchrun": (("train.strategy=fsdp",), torchrun),
        "deepspeed, torchrun": (("train.strategy=deepspeed",), torchrun),
    }
    for number, (name, (overrides, launcher)) in enumerate(cases.items()):
        ended, said = trained(folder, device, f"option{number}", *overrides, launcher=launcher)
        if not ended:
            print(f"{name}: {said}")
        yield Row(f"run with {name}", float(ended), 1.0, float(ended), 1.0, ended)


def waiting(folder: Path, device: str) -> Iterator[Row]:
    """Share of the last epoch spent waiting for data, from FLAC and from HDF5."""
    files = [f"dataset.{kind}_h5={folder / kind}.h5" for kind in ("train", "test")]
    paths = [f"dataset.{kind}_path={folder / kind}.zip" for kind in ("train", "test")]
    subprocess.run([command("buildh5ds"), *files, *paths, f"runs_root={folder}"], check=True, capture_output=True)
    for name, overrides in (("FLAC", []), ("HDF5", ["dataset.use_hdf5=true", *files])):
        ended, said = trained(folder, device, f"wait{name}", "train.epochs=4", *overrides)
        if not ended:
            print(f"data from {name}: {said}")
            continue
        with (folder / f"wait{name}" / "train/history.csv").open(newline="") as file:
            value = float(list(csv.DictReader(file))[-1]["data_waiting"])
        yield Row.value(f"waiting for data, {name}", value, 0.05, value, 0.05)


def speed(device: str, sizes: Sizes) -> Iterator[Row]:
    """Audio per second, memory and utilisation of an update of `sizes.clips` clips, both phases;
    on a GPU also with compiled layers."""
    rate = machine_rates(device)
    audio = sizes.clips * sizes.seconds
    window = noise_batch([round(sizes.seconds * SPEECH.sample_rate)] * sizes.micro_batch)
    for size, phase, compiled in itertools.product(sizes.models, (1, 2), (False, True)):
        if compiled and device == "cpu":
            continue
        bench = Bench(size, device, runs=sizes.runs)
        build = partial(bench.step, window, phase, micro_batches=sizes.clips // sizes.micro_batch)
        flop = operations(build())  # the counter sees nothing of compiled layers
        step = build(compiled=compiled)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = bench.seconds(step)
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else math.nan
        peak = rate.fp32 if bench.engine.precision == "fp32" else rate.bf16
        share = flop / took / peak
        name = f"{size}, phase {phase}" + ", compiled" * compiled
        print(
            f"{name}, {bench.engine.precision}: {audio / took:,.0f} audio s/s, {memory:.1f} GiB, "
            f"{share:.0%} of {peak / 1e12:,.1f} TFLOP/s"
        )
        costliest(step, device)
        del step  # before the next one takes memory
        if device == "cuda":
            target = 0.4 if compiled else 0.35
            yield Row(f"utilisation, {name}", share, 1.0, share, target, share >= target)
        if device == "cuda" and size == "base":
            yield Row.speedup(f"s per audio s, {name}", took / audio, 1 / SPIDR_RATE, 1.0)


def costliest(step: TrainingStep, device: str) -> None:
    """Prints the two kernels that take most of an update."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    kernels = [event for event in profiler.key_averages() if event.device_type.name == device.upper()]
    events = sorted(kernels, key=lambda event: -float(getattr(event, key)))
    total = sum(float(getattr(event, key)) for event in events)
    for event in events[:2]:
        print(f"    {float(getattr(event, key)) / total:4.0%} {event.key[:90]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--parts", nargs="*", default=["parity", "mixture", "resume", "speed", "options", "waiting"])
    parser.add_argument("--micro-batch", type=int, default=FULL.micro_batch, help="clips that fit into memory")
    given = parser.parse_args()
    sizes = SMALL if given.device == "cpu" else FULL._replace(micro_batch=given.micro_batch)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU: small sizes, times mean nothing"
    print(f"{name}; torch {torch.__version__}")
    rows: list[Row] = []
    with corpus() as folder:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "parity": partial(parity, given.device),
            "mixture": partial(mixture, given.device, sizes.frames),
            "resume": partial(resumed, given.device),
            "speed": partial(speed, given.device, sizes),
            "options": partial(options, folder, given.device),
            "waiting": partial(waiting, folder, given.device),
        }
        for part in given.parts:
            started = time.perf_counter()
            first = len(rows)
            try:
                for row in parts[part]():
                    rows.append(row)
            except Exception as error:  # the report says so, and the other parts are still made
                print(f"{part}: {type(error).__name__}: {error}")
                rows.append(Row(part, 0.0, 1.0, 0.0, 1.0, False))
            if rows[first:]:
                print_rows(rows[first:])  # at once: the report may be cut short
            print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    print(json.dumps({"device": name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
