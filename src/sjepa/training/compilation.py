"""`train.compile`: torch.compile for the transformer layers; parameter names do not change, so
weights of any run can be loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

from sjepa.core.errors import UserError

_CPU_COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
_C_COMPILERS = ("gcc", "clang", "cc")
_MOST_VARIANTS = 64  # per layer: train or eval, layer dropped or not, one clip or more, for each network


def check_compiler(device: torch.device) -> None:
    """Raises UserError if torch.compile cannot run: it needs a C++ compiler on CPU, Triton and a
    C compiler on GPU."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX") or _CPU_COMPILER
        if shutil.which(wanted) is None:
            raise UserError(
                f"train.compile: true needs a C++ compiler ({wanted}, or what CXX names), and there is none"
            )
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError("train.compile: true needs the package triton on a GPU; install it or set it to false")
        if not any(shutil.which(name) for name in (os.environ.get("CC", ""), *_C_COMPILERS)):
            raise UserError("train.compile: true needs a C compiler on a GPU (gcc, clang or CC), and there is none")
    else:
        raise UserError(f"train.compile: true is for cpu, cuda and rocm, not for {device.type}")


def compile_layers(layers: list[nn.Module], *, backend: str = "inductor") -> None:
    """Compiles `layers` in place with dynamic shapes. Random numbers are those of eager mode, so
    that results do not depend on what was compiled before."""
    torch._inductor.config.fallback_random = True
    torch._dynamo.config.optimize_ddp = False  # would split layers at DDP bucket boundaries, which fails
    torch._dynamo.config.recompile_limit = _MOST_VARIANTS
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
