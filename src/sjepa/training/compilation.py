"""`train.compile`: the transformer layers as compiled code, under their own names, with weights of any run."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from sjepa.core.errors import UserError

_CPU_COMPILERS = ("c++", "g++", "clang++", "cl")


def check_compiler(device: torch.device) -> None:
    """Raises UserError if the machine lacks what torch.compile calls: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ([wanted] if wanted else _CPU_COMPILERS)):
            raise UserError("train.compile: true needs a C++ compiler (g++, clang++ or CXX), and there is none")
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError("train.compile: true needs the package triton on a GPU; install it or set it to false")
    else:
        raise UserError(f"train.compile: true is for cpu, cuda and rocm, not for {device.type}")


def compile_layers(layers: list[nn.Module]) -> None:
    """Compiles modules in place, for any number of frames."""
    for layer in layers:
        layer.compile(dynamic=True)
