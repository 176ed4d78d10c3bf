"""Consolidates DeepSpeed's checkpoint folders, and plain ones of the same layout, into one file,
without starting an engine and without running code of the files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.torch_files import read_foreign_file, write_torch_file
from sjepa.tokenizer.shards import CONTENT, LATEST, MODEL_STATES
from sjepa.tokenizer.weights import FORMAT, KIND

ENCODER_KIND = "sjepa tokenizer encoder alone"
_OPTIMISER = re.compile(r"^(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_ENCODER = "encoder."
_GAUSSIANS = ("attention.offset", "attention.raw_width")


# objects in DeepSpeed's own files, beside tensors and plain values, that conversion does not need
_UNUSED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


@dataclass(frozen=True)
class Consolidated:
    """All weights in float32 by name, the tag they were read from, and what our own folders hold
    beside them (shape, targets, configuration; empty for other folders)."""

    weights: dict[str, Tensor]
    tag: str
    content: dict[str, Any]


def consolidate(folder: Path, tag: str | None) -> Consolidated:
    """Reads `folder`/`tag` (None: the one that `latest` names). Raises UserError, with what is
    there, if the tag, a file or a shard is missing or damaged."""
    if not folder.is_dir():
        raise UserError(f"--ds_dir: {folder}: no such folder")
    tags = sorted(path.name for path in folder.iterdir() if path.is_dir() and (path / MODEL_STATES).exists())
    there = f"there are {', '.join(tags)}" if tags else "it holds no checkpoint"
    if tag is None:
        try:
            tag = (folder / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--ds_dir: {folder}: no file named {LATEST}; give --tag ({there})") from None
    if tag not in tags:
        raise UserError(f"--tag: {tag}: no such checkpoint in {folder} ({there})")
    states = read_foreign_file(folder / tag / MODEL_STATES, unused=_UNUSED)
    module = states.get("module")
    if not isinstance(module, dict) or not all(isinstance(value, Tensor) for value in module.values()):
        raise UserError(f"{folder / tag / MODEL_STATES}: holds no weights")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in module.items()}
    weights |= _master_weights(folder / tag, states)
    content = states.get(CONTENT, {})
    return Consolidated(weights, tag, content if isinstance(content, dict) else {})


def _master_weights(folder: Path, states: Mapping[str, Any]) -> dict[str, Tensor]:
    """The float32 weights of the optimiser's shards; empty if there are none (plain folders)."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _OPTIMISER.match(path.name))}
    shapes, world = states.get("param_shapes"), states.get("dp_world_size", 1)
    if not found and not shapes:
        return {}
    missing = sorted(set(range(int(world))) - set(found))
    if missing:
        names = ", ".join(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in missing)
        raise UserError(f"{folder}: incomplete, without {names} (written by {world} processes)")
    shards = [read_foreign_file(found[rank], unused=_UNUSED)["optimizer_state_dict"] for rank in range(int(world))]
    if "single_partition_of_fp32_groups" not in shards[0]:
        raise UserError(f"{folder}: not of ZeRO stage 1 or 2")
    weights: dict[str, Tensor] = {}
    for number, group in enumerate(shapes or []):
        parts = [shard["single_partition_of_fp32_groups"][number].flatten().float() for shard in shards]
        flat, start = torch.cat(parts), 0
        for name, shape in group.items():
            count = math.prod(shape)
            if start + count > len(flat):
                raise UserError(f"{folder}: its shards are shorter than its weights ({name})")
            weights[name] = flat[start : start + count].view(tuple(shape)).clone()
            start += count
    return weights


def convert(ds_dir: Path, out: Path, *, tag: str | None, encoder_only: bool, assert_gaatn: bool) -> str:
    """Writes one file: of our own folders weights that `evalsjepa` and later stages take, or the
    encoder alone. Returns what was written, as one line. Raises UserError; nothing is written
    then."""
    found = consolidate(ds_dir, tag)
    if assert_gaatn and not all(any(part in name for name in found.weights) for part in _GAUSSIANS):
        raise UserError(f"--assert_gaatn: {ds_dir / found.tag}: no weights of Gaussian adaptive attention")
    weights, content = found.weights, {"tag": found.tag, **found.content}
    kind = KIND
    if encoder_only:
        kind = ENCODER_KIND
        weights = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
        if not weights:
            raise UserError(f"--encoder_only: {ds_dir / found.tag}: no weights of an encoder")
        content = {name: value for name, value in content.items() if name != "targets"}
    write_torch_file(out, {"progress": {}, **content, "model": weights}, kind=kind, format_number=FORMAT)
    numbers = sum(value.numel() for value in weights.values())
    return f"{out}: {len(weights)} tensors, {numbers:,} numbers, from {found.tag}" + ", encoder only" * encoder_only
