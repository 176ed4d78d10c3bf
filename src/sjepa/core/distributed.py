"""Wrapper around Lightning Fabric and DeepSpeed: devices, processes and precision."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sjepa.core import zero
from sjepa.core.apart import keep_apart
from sjepa.core.errors import UserError
from sjepa.core.ranks import ALONE, Ranks
from sjepa.core.sharding import whole
from sjepa.core.threads import usable_cores

Module = TypeVar("Module", bound=nn.Module)

_CPU_DESCRIPTION = Path("/proc/cpuinfo")
_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_SECONDS_BETWEEN_LOOKS = 0.5
_DEEPSPEED_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE"}  # its launcher sets these
_PATIENCE = timedelta(hours=2)  # collective timeout: rank 0 may scan a large corpus first


@dataclass(frozen=True)
class Processes:
    """Number of processes of a run: `devices` on each of `nodes` machines."""

    devices: int = 1
    nodes: int = 1

    @property
    def total(self) -> int:
        return self.devices * self.nodes


class Engine:
    """Device, number of processes, strategy and precision of a run."""

    def __init__(
        self,
        *,
        device: str,
        precision: str,
        processes: Processes = Processes(),
        strategy: str = "ddp",
        zero_stage: int = 1,
        exchange: str = "fp32",
        launch: bool = True,
    ) -> None:
        """`device`: cpu, cuda, rocm, mps or auto; `precision`: fp32, bf16, fp16 or auto.

        Several processes are started by torchrun, deepspeed or SLURM, else this process starts the
        others of its machine by re-running its own command line. `strategy`: ddp (auto) replicates
        weights, gradients and moments on every rank, fsdp shards all of them, deepspeed the moments
        and, with `zero_stage` 2, the gradients.
        `exchange`: fp32 or, with ddp, bf16 (gradients are rounded for the all-reduce).
        With `launch=False` no processes are started. Raises UserError if the device or precision
        is not available, or if the number of started processes differs from the configured one.
        """
        if strategy == "fsdp" and precision == "fp16":
            raise UserError("train.precision: fp16 does not go with train.strategy: fsdp; use bf16 or fp32")
        self._exchange = exchange
        kind = _device_kind(device)
        self.precision = _choose_precision(precision, kind)
        launcher, self.processes = _launcher(processes, os.environ)
        _check_devices(kind, self.processes.devices)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # suppress its banners
        warnings.filterwarnings("ignore", module=r"torch\.distributed|deepspeed")
        wraps = self.processes.total > 1 or isinstance(launcher, TorchElasticEnvironment)  # torchrun: one process too
        parallel = launch and wraps
        if "OMP_NUM_THREADS" not in os.environ:  # torch respects the affinity, not the cgroup quota
            share = max(1, usable_cores() // (self.processes.devices if parallel else 1))
            torch.set_num_threads(min(torch.get_num_threads(), share))
            if parallel:  # inherited by the other local ranks
                os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        if kind == "cpu" and launch:
            keep_apart(torch.get_num_threads())
        if strategy == "deepspeed" and wraps:
            zero.deepspeed(kind)  # before the other processes are started
        self._fabric = Fabric(
            accelerator=kind,
            devices=self.processes.devices if parallel else 1,
            num_nodes=self.processes.nodes if parallel else 1,
            strategy=_strategy(self.processes, sharded=strategy == "fsdp") if parallel else "auto",
            precision=_FABRIC_PRECISION[self.precision],  # type: ignore[arg-type]
            plugins=[launcher],
        )
        self.ranks, self._parallel = ALONE, parallel
        if parallel:
            parent = os.getppid()
            self._fabric.launch()
            if isinstance(launcher, LightningEnvironment) and self._fabric.local_rank > 0:
                threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            self.ranks = Ranks(self._fabric.global_rank, self._fabric.world_size, self._fabric.device)
        self.device: torch.device = self._fabric.device
        self._zero = (
            zero.Zero(self.device, self.autocast_dtype, zero_stage) if parallel and strategy == "deepspeed" else None
        )

    @property
    def scales_loss(self) -> bool:
        """fp16: the gradient scaler skips updates with non-finite gradients; it must see them."""
        return self.precision == "fp16"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def describe(self) -> str:
        """Summary for the log: device, precision and threads."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        count, nodes = self.processes.total, self.processes.nodes
        many = f"{count} × " if count > 1 else ""
        machines = f" on {nodes} machines" if nodes > 1 else ""
        return f"{many}{name}, {self.precision}{threads}{machines}"

    def setup(self, network: nn.Module, build: Callable[[nn.Module], torch.optim.AdamW]) -> tuple[Any, Any]:
        """Wrapped model (on the device, with autocast) and optimiser. May be called for several
        networks. With FSDP the parameters of `network` are sharded in place; its `shards()` lists
        the submodules that are FSDP units, inner ones before the modules that contain them."""
        gc.collect()  # frees a discarded wrapped model, whose buffers are as large as the weights
        if self._zero is not None:
            return self._zero.setup(network, build)
        model = self._fabric.setup_module(network)
        if self._exchange == "bf16" and isinstance(model._forward_module, DistributedDataParallel):
            model._forward_module.register_comm_hook(None, _mean_in_bf16)
        return model, self._fabric.setup_optimizers(build(network))

    def save_shards(self, model: Any, folder: Path, tag: str, content: dict[str, Any]) -> bool:
        """With deepspeed: its own checkpoint of the wrapped model in `folder`/`tag`, with `content`
        as its client state, in place of an older one. Returns whether it was written. Raises
        UserError. Collective."""
        if self._zero is None:
            return False
        self.ranks.only_main(lambda: _empty(folder / tag))
        try:
            model.save_checkpoint(str(folder), tag=tag, client_state=content)
        except (OSError, RuntimeError) as error:  # torch.save raises both
            raise UserError(f"{folder / tag}: cannot be written ({' '.join(str(error).split())[:120]})") from error
        return True

    def release(self, model: Any) -> None:
        """Frees a wrapped model before `setup` is called again."""
        if self._zero is not None:
            model.destroy()

    def to_device(self, module: Module) -> Module:
        return module.to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast context for calls outside the model that `setup` returned."""
        return self._fabric.autocast()

    def backward(self, model: Any, loss: Tensor) -> None:
        """Gradients of the loss summed over ranks: the loss is scaled by the number of ranks, since
        DDP, FSDP and DeepSpeed average gradients."""
        if self._zero is not None:
            model.backward(loss * self.ranks.size)
        else:
            self._fabric.backward(loss * self.ranks.size)

    def accumulating(self, model: Any, *, more: bool) -> contextlib.AbstractContextManager[Any]:
        """Context for forward and backward of a micro-batch; with `more` micro-batches to follow in
        this update, the gradient all-reduce is skipped."""
        if self._zero is not None:
            model.set_gradient_accumulation_boundary(not more)
            return contextlib.nullcontext()
        if not self._parallel:
            return contextlib.nullcontext()
        return self._fabric.no_backward_sync(model, enabled=more)

    def clip_gradients(self, model: nn.Module, optimizer: Any, max_norm: float) -> Tensor:
        """Clips the gradient to `max_norm` (deepspeed: inside `step`). Returns the norm before
        clipping, which may be inf or NaN."""
        if self._zero is not None:
            return optimizer.limit(max_norm)
        norm = self._fabric.clip_gradients(model, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        return torch.as_tensor(whole(norm))


def _empty(folder: Path) -> None:
    """Removes what an earlier checkpoint of the same name left, perhaps of more processes."""
    if folder.exists():
        shutil.rmtree(folder)


def _mean_in_bf16(_, bucket):  # type: ignore[no-untyped-def]  # ddp refuses annotations that are strings
    """All-reduce of a bucket of gradients in bf16. (torch's own hook is for NCCL only.)"""
    gradients = bucket.buffer()
    rounded = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    work = dist.all_reduce(rounded, async_op=True)
    return work.get_future().then(lambda done: gradients.copy_(done.value()[0]))


def _strategy(processes: Processes, *, sharded: bool) -> Strategy:
    if not sharded:
        return DDPStrategy(timeout=_PATIENCE, gradient_as_bucket_view=True)  # saves a copy of the gradients

    def shard(network: Any, mesh: Any) -> Any:
        for part in [*network.shards(), network]:
            fully_shard(part, mesh=mesh["data_parallel"])
        return network

    return ModelParallelStrategy(shard, data_parallel_size=processes.total, tensor_parallel_size=1, timeout=_PATIENCE)


def _launcher(wanted: Processes, environment: Mapping[str, str]) -> tuple[ClusterEnvironment, Processes]:
    """The launcher and the number of processes; those of torchrun, deepspeed or SLURM must match
    the configuration."""
    by_deepspeed = environment.keys() >= _DEEPSPEED_VARIABLES
    if by_deepspeed or TorchElasticEnvironment.detect():
        here = int(environment["LOCAL_SIZE" if by_deepspeed else "LOCAL_WORLD_SIZE"])
        started = Processes(here, int(environment["WORLD_SIZE"]) // here)
        return TorchElasticEnvironment(), _agreed("deepspeed" if by_deepspeed else "torchrun", started, wanted)
    tasks = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in environment else 1  # set by srun alone
    if tasks > 1:
        if "SLURM_NTASKS_PER_NODE" not in environment:
            raise UserError(
                "SLURM: start the job with --ntasks-per-node (one task per device), not with --ntasks alone"
            )
        nodes = int(environment.get("SLURM_NNODES", "1"))
        return SLURMEnvironment(auto_requeue=False), _agreed("SLURM", Processes(tasks // nodes, nodes), wanted)
    if wanted.nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= set(environment):
        raise UserError(
            f"train.num_nodes: {wanted.nodes} machines are started by torchrun or SLURM (or by hand on each of them, with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK set)"
        )
    return LightningEnvironment(), wanted


def _end_with(parent: int) -> None:
    """Exits this process when its parent process has ended."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _agreed(launcher: str, started: Processes, wanted: Processes) -> Processes:
    if wanted not in (Processes(), started):
        raise UserError(
            f"train.devices: {wanted.devices} on train.num_nodes: {wanted.nodes}, but {launcher} started "
            f"{started.devices} on each of {started.nodes}; leave both keys at 1 to use these"
        )
    return started


def _check_devices(kind: str, devices: int) -> None:
    present = {"cuda": torch.cuda.device_count, "mps": lambda: 1}.get(kind)
    if present is not None and devices > present():
        raise UserError(f"train.devices: {devices} is more than the {present()} {kind} devices of this machine")


def _device_kind(device: str) -> str:
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    is_rocm = has_cuda and torch.version.hip is not None
    if device == "auto":
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    present = {"cpu": True, "cuda": has_cuda and not is_rocm, "rocm": is_rocm, "mps": has_mps}
    if device == "cuda" and is_rocm:
        return "cuda"  # PyTorch for ROCm uses the device name cuda
    if not present[device]:
        there = [name for name, yes in present.items() if yes]
        build = f"PyTorch {torch.__version__}"
        raise UserError(f"device: {device} is not available on this machine ({build} sees: {', '.join(there)})")
    return "cuda" if device == "rocm" else device


def _choose_precision(precision: str, kind: str) -> str:
    if precision == "fp16" and kind == "cpu":
        raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    faster = {"cuda": _gpu_multiplies_bf16, "cpu": _cpu_multiplies_bf16}.get(kind, lambda: False)
    return "bf16" if faster() else "fp32"


def _gpu_multiplies_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU multiplies matrices faster in bf16 than in float32: with AMX, Arm's bf16, or
    AVX-512 BF16 of AMD. Intel's AVX-512 BF16 without AMX (older, or hidden by a hypervisor) reaches
    half of the float32 rate."""
    try:
        words = set(_CPU_DESCRIPTION.read_text().split())
    except OSError:  # not Linux
        return False
    return bool(words & {"amx_bf16", "bf16"}) or {"avx512_bf16", "AuthenticAMD"} <= words
