"""The one face of the parallel engine (Lightning Fabric): device and precision."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from sjepa.core.errors import UserError

Module = TypeVar("Module", bound=nn.Module)

_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Engine:
    """Where a run computes, and in which arithmetic."""

    def __init__(self, *, device: str, precision: str) -> None:
        """`device`: cpu, cuda, rocm, mps or auto; `precision`: fp32, bf16, fp16 or auto. Raises UserError if the
        machine has no such device or arithmetic."""
        kind = _device_kind(device)
        self.precision = _choose_precision(precision, kind)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # its banners are not ours
        self._fabric = Fabric(accelerator=kind, devices=1, precision=_FABRIC_PRECISION[self.precision])  # type: ignore[arg-type]
        self.device: torch.device = self._fabric.device

    @property
    def scales_loss(self) -> bool:
        """float16: the gradient scaler itself leaves out steps that overflow, and must see them."""
        return self.precision == "fp16"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def describe(self) -> str:
        """Device, arithmetic and threads in words."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{name}, {self.precision}{threads}"

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Model and optimiser on the device, their calls in the chosen arithmetic."""
        return self._fabric.setup(model, optimizer)  # type: ignore[no-any-return]

    def to_device(self, module: Module) -> Module:
        return module.to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The chosen arithmetic for calls outside `setup`'s model."""
        return self._fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self._fabric.backward(loss)

    def clip_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        """Scales the gradient down to `max_norm`; its norm before that, which may be inf or NaN."""
        norm = self._fabric.clip_gradients(model, optimizer, max_norm=max_norm, error_if_nonfinite=False)  # type: ignore[arg-type]
        return torch.as_tensor(norm)


def _device_kind(device: str) -> str:
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    is_rocm = has_cuda and torch.version.hip is not None
    if device == "auto":
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    present = {"cpu": True, "cuda": has_cuda and not is_rocm, "rocm": is_rocm, "mps": has_mps}
    if device == "cuda" and is_rocm:
        return "cuda"  # the ROCm build of PyTorch answers to that name
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
    native = {"cuda": _gpu_multiplies_bf16, "cpu": _cpu_multiplies_bf16}.get(kind, lambda: False)
    return "bf16" if native() else "fp32"


def _gpu_multiplies_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 products of its own (AVX-512 BF16, AMX; Arm's bf16)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
