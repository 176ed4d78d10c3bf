"""Reads checkpoint folders of DeepSpeed's layout, and plain ones like them, without starting an
engine and without running code of the files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.torch_files import read_foreign_file

LATEST, MODEL_STATES = "latest", "mp_rank_00_model_states.pt"
CONTENT = "sjepa"  # key of what our own folders hold beside the weights
_OPTIMISER = re.compile(r"^(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_WEIGHTS, _OPTIMISER_STATE = "single_partition_of_fp32_groups", "base_optimizer_state"
_MOMENTS = ("exp_avg", "exp_avg_sq")

# objects in DeepSpeed's own files, beside tensors and plain values, that are not needed
_UNUSED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


@dataclass(frozen=True)
class Consolidated:
    """All weights in float32 by name; `moments`: AdamW's state of every sharded one; the tag they
    were read from; `content`: what our own folders hold beside them (empty for others)."""

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    tag: str
    content: dict[str, Any]


def consolidate(folder: Path, tag: str | None) -> Consolidated:
    """Reads `folder`/`tag` (None: the one that `latest` names). Raises UserError, with what is
    there, if the tag, a file or a shard is missing or damaged."""
    try:
        return _consolidated(folder, tag)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise UserError(f"{folder / (tag or '')}: damaged, or not written by DeepSpeed ({what})") from error


def _consolidated(folder: Path, tag: str | None) -> Consolidated:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    tags = sorted(path.name for path in folder.iterdir() if path.is_dir() and (path / MODEL_STATES).exists())
    there = f"there are {', '.join(tags)}" if tags else "it holds no checkpoint"
    if tag is None:
        try:
            tag = (folder / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{folder}: no file named {LATEST}; name a checkpoint by --tag ({there})") from None
    if tag not in tags:
        raise UserError(f"{folder / tag}: no such checkpoint ({there})")
    states = read_foreign_file(folder / tag / MODEL_STATES, unused=_UNUSED)
    module = states.get("module")
    if not isinstance(module, dict) or not all(isinstance(value, Tensor) for value in module.values()):
        raise UserError(f"{folder / tag / MODEL_STATES}: holds no weights")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in module.items()}
    shards, shapes = _shards(folder / tag, states), states.get("param_shapes") or []
    if shards:
        weights |= _whole(folder / tag, [shard[_WEIGHTS] for shard in shards], shapes)
    content = states.get(CONTENT, {})
    return Consolidated(
        weights, _moments(folder / tag, shards, shapes), tag, content if isinstance(content, dict) else {}
    )


def _shards(folder: Path, states: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The optimiser's state of every process; empty if there is none (plain folders)."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _OPTIMISER.match(path.name))}
    world = int(states.get("dp_world_size", 1))
    if not found and not states.get("param_shapes"):
        return []
    missing = sorted(set(range(world)) - set(found))
    if missing:
        names = ", ".join(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in missing)
        raise UserError(f"{folder}: incomplete, without {names} (written by {world} processes)")
    shards = [read_foreign_file(found[rank], unused=_UNUSED)["optimizer_state_dict"] for rank in range(world)]
    if _WEIGHTS not in shards[0]:
        raise UserError(f"{folder}: not of ZeRO stage 1 or 2")
    return shards


def _whole(folder: Path, parts: Sequence[Sequence[Tensor]], shapes: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Tensors by name from the flat parts of all processes, of each parameter group of `shapes`."""
    found: dict[str, Tensor] = {}
    for number, group in enumerate(shapes):
        flat, start = torch.cat([own[number].flatten().float() for own in parts]), 0
        for name, shape in group.items():
            count = math.prod(shape)
            if start + count > len(flat):
                raise UserError(f"{folder}: its shards are shorter than its weights ({name})")
            found[name] = flat[start : start + count].view(tuple(shape)).clone()
            start += count
    return found


def _moments(
    folder: Path, shards: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by name; empty if the optimiser was another one."""
    states = [list(_by_group(shard.get(_OPTIMISER_STATE))) for shard in shards]
    if not states or any(
        len(own) != len(shapes) or {"step", *_MOMENTS} - set(group) for own in states for group in own
    ):
        return {}
    whole = {name: _whole(folder, [[group[name] for group in own] for own in states], shapes) for name in _MOMENTS}
    return {
        name: {"step": states[0][number]["step"].clone(), **{moment: whole[moment][name] for moment in _MOMENTS}}
        for number, group in enumerate(shapes)
        for name in group
    }


def _by_group(state: Any) -> Iterator[dict[str, Any]]:
    """The optimiser's state of each parameter group, one flat tensor each."""
    groups = state.get("state") if isinstance(state, dict) else None
    yield from (groups[number] for number in sorted(groups)) if isinstance(groups, dict) else ()
