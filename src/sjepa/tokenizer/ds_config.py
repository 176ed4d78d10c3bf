"""The user's DeepSpeed configuration (`train.ds_config`), as keys of our own, so that a run can go
on with and without DeepSpeed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.training.schedule import RateCurve

# of these, none changes the result
_NO_EFFECT = {"steps_per_print", "wall_clock_breakdown", "dump_state", "zero_allow_untested_optimizer",
              "flops_profiler", "tensorboard", "csv_monitor", "wandb", "comms_logger",
              "communication_data_type", "memory_breakdown"}  # fmt: skip
_ZERO_TUNING = {"stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter",
                "reduce_bucket_size", "contiguous_gradients", "round_robin_gradients"}  # fmt: skip
_KNOWN = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
          "fp16", "bf16", "zero_optimization", "optimizer", "scheduler"}  # fmt: skip
_LOSS_SCALE = {"enabled", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
               "consecutive_hysteresis", "min_loss_scale"}  # fmt: skip
_ADAMW = {"lr": "lr", "betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}
_DEFAULT_PEAK = 1e-3  # of DeepSpeed's schedulers with a warm-up
_SCHEDULERS = {
    "WarmupLR": {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"},
    "WarmupDecayLR": {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "total_num_steps"},
    "WarmupCosineLR": {"warmup_min_ratio", "cos_min_ratio", "warmup_num_steps", "warmup_type", "total_num_steps"},
}


@dataclass(frozen=True, kw_only=True)
class DeepSpeedCurve(RateCurve):
    """The learning rates of DeepSpeed's schedulers of the same `name` and `params`. Update n runs
    at their iteration n − 1, the first one at their lowest rate."""

    name: str
    params: tuple[tuple[str, Any], ...]

    def at(self, step: int) -> float:
        given, iteration = dict(self.params), step - self.start_step - 1
        warmup, total = max(2, int(given.get("warmup_num_steps", 1000))), int(given.get("total_num_steps", 0))
        ratio = _warmed(iteration, warmup, is_log=given.get("warmup_type", "log") != "linear")
        if self.name == "WarmupCosineLR":
            least, start = float(given.get("cos_min_ratio", 1e-4)), float(given.get("warmup_min_ratio", 0.0))
            if iteration < 0:
                return 0.0
            if ratio is not None:
                return self.peak * (start + ratio * (1 - start))
            progress = min(1.0, (iteration - warmup + 1) / max(1, total - warmup))
            return self.peak * max(0.0, least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2)
        lowest = float(given.get("warmup_min_lr", 0.0))
        if ratio is None:
            is_decayed = self.name == "WarmupDecayLR"
            ratio = max(0.0, (total - iteration) / max(1.0, total - warmup)) if is_decayed else 1.0
        return lowest + (self.peak - lowest) * ratio


def _warmed(iteration: int, warmup: int, *, is_log: bool) -> float | None:
    """Share of the warm-up's rise; None after it."""
    if iteration >= warmup:
        return None
    if iteration < 0:
        return 0.0
    return math.log(iteration + 1) / math.log(warmup) if is_log else iteration / warmup


def read_ds_config(path: Path) -> dict[str, Any]:
    """Raises UserError if the file is missing or not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"train.ds_config: {path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"train.ds_config: {path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"train.ds_config: {path}: holds {type(values).__name__}, not an object")
    return values


def as_keys(values: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys, dotted, that a DeepSpeed configuration stands for. `stated`: the keys that are set
    elsewhere, with their values.

    Raises UserError, naming both, where the two contradict each other, and where something is asked
    for that is not available.
    """
    found: dict[str, tuple[str, Any]] = {}  # key → where it is set, value
    problems = [f"{name}: not available here" for name in sorted(set(values) - _KNOWN - _NO_EFFECT)]

    def keep(key: str, where: str, value: Any) -> None:
        if value is not None and value != "auto":
            found[key] = (where, value)

    keep("train.batch_size", "train_micro_batch_size_per_gpu", values.get("train_micro_batch_size_per_gpu"))
    keep("train.grad_accum", "gradient_accumulation_steps", values.get("gradient_accumulation_steps"))
    keep("train.grad_clip_norm", "gradient_clipping", values.get("gradient_clipping"))
    problems += _half_problems(values)
    halves = [name for name in ("fp16", "bf16") if _section(values, name, problems).get("enabled")]
    if len(halves) == 2:
        problems.append("fp16.enabled and bf16.enabled: give one of the two")
    elif halves or {"fp16", "bf16"} & set(values):
        keep("train.precision", f"{(halves or ['bf16'])[0]}.enabled", halves[0] if halves else "fp32")
    problems += _zero_keys(_section(values, "zero_optimization", problems), keep)
    problems += _optimizer_keys(_section(values, "optimizer", problems), keep)
    problems += _scheduler_keys(_section(values, "scheduler", problems), keep)
    for key, (where, value) in found.items():
        if stated.get(key, "auto") != "auto" and _plain(stated[key]) != _plain(value):
            problems.append(f"{where} is {json.dumps(value)}, but {key} is set to {json.dumps(_plain(stated[key]))}")
    if problems:
        raise UserError("\n".join(f"train.ds_config: {problem}" for problem in problems))
    return {key: value for key, (_, value) in found.items()}


def _section(values: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    section = values.get(name, {})
    if isinstance(section, dict):
        return section
    problems.append(f"{name}: {section!r} is not an object")
    return {}


def _half_problems(values: Mapping[str, Any]) -> list[str]:
    """Of `fp16` and `bf16`. Those of a dynamic loss scale are accepted: it has its own."""
    found = []
    for name, known in (("fp16", _LOSS_SCALE), ("bf16", {"enabled"})):
        section = values.get(name)
        for key, value in section.items() if isinstance(section, dict) else ():
            if key not in known and value not in (None, False):
                found.append(f"{name}.{key}: not available here")
            elif key == "loss_scale" and value:
                found.append(f"fp16.loss_scale: {value!r}: a constant scale is not available here; 0 is a dynamic one")
    return found


def _zero_keys(section: Mapping[str, Any], keep: Callable[[str, str, Any], None]) -> list[str]:
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2):
        return [f"zero_optimization.stage: {stage!r} is not 0, 1 or 2"]
    keep("train.strategy", "zero_optimization.stage", "deepspeed" if stage else "ddp")
    if stage:
        keep("train.zero_stage", "zero_optimization.stage", stage)
    return [
        f"zero_optimization.{name}: not available (it needs an optimiser compiled on the machine); leave it out"
        if name.startswith("offload")
        else f"zero_optimization.{name}: not available here"
        for name, value in sorted(section.items())
        if name not in _ZERO_TUNING and value not in (None, False)
    ]


def _optimizer_keys(section: Mapping[str, Any], keep: Callable[[str, str, Any], None]) -> list[str]:
    if not section:
        return []
    if section.get("type") not in ("AdamW", "Adam"):
        return [f"optimizer.type: {section.get('type')!r} is not AdamW"]
    params = section.get("params") or {}
    if not isinstance(params, dict):
        return [f"optimizer.params: {params!r} is not an object"]
    params = dict(params)
    is_decoupled = params.pop("adam_w_mode", True) and params.pop("torch_adam", True)
    for name, key in _ADAMW.items():
        if name in params:
            value = params.pop(name)
            keep(f"optimizer.{key}", f"optimizer.params.{name}", value)
    problems = [f"optimizer.params.{name}: not available here" for name in sorted(params)]
    return problems if is_decoupled else [*problems, "optimizer.params.adam_w_mode: false is not available here"]


def _scheduler_keys(section: Mapping[str, Any], keep: Callable[[str, str, Any], None]) -> list[str]:
    if not section:
        return []
    name, params = section.get("type"), section.get("params") or {}
    if name not in _SCHEDULERS:
        return [f"scheduler.type: {name!r} is not one of {', '.join(_SCHEDULERS)}"]
    if not isinstance(params, dict):
        return [f"scheduler.params: {params!r} is not an object"]
    params = {key: value for key, value in params.items() if value != "auto"}
    unknown = sorted(set(params) - _SCHEDULERS[name])
    if unknown:
        return [f"scheduler.params.{key}: {name} has no such parameter" for key in unknown]
    problems = [
        f"scheduler.params.{key}: {value!r} is not {'log or linear' if key == 'warmup_type' else 'a number'}"
        for key, value in params.items()
        if (value not in ("log", "linear") if key == "warmup_type" else not _is_number(value))
    ]
    if name != "WarmupLR" and "total_num_steps" not in params:
        problems.append(f"scheduler.params.total_num_steps: {name} needs it")
    if name != "WarmupCosineLR" and "warmup_max_lr" not in section.get("params", {}):
        keep("optimizer.lr", "scheduler.params.warmup_max_lr (its default)", _DEFAULT_PEAK)
    if "warmup_max_lr" in params:
        keep("optimizer.lr", "scheduler.params.warmup_max_lr", params.pop("warmup_max_lr"))
    keep("scheduler.deepspeed", "scheduler", {"type": name, "params": params})
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_batch(values: Mapping[str, Any], *, clips: int, accumulated: int, processes: int) -> None:
    """`train_batch_size` must be clips × micro-batches × processes. Raises UserError."""
    total = values.get("train_batch_size")
    if total in (None, "auto") or total == clips * accumulated * processes:
        return
    raise UserError(
        f"train.ds_config: train_batch_size is {total}, but train.batch_size: {clips} × train.grad_accum: {accumulated} × "
        f"{processes} processes are {clips * accumulated * processes}"
    )


def _plain(value: Any) -> Any:
    return [float(item) for item in value] if isinstance(value, list | tuple) else value
