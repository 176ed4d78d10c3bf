"""Loading and validation of a tokenizer configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sjepa.config.load import Schema, describe, stated
from sjepa.config.sizes import Sizes
from sjepa.core.errors import UserError
from sjepa.tokenizer.ds_config import as_keys, read_ds_config
from sjepa.tokenizer.settings import TokConfig
from sjepa.tokenizer.sizes import RATES, SIZES, Hyperparameters


def _problems(config: TokConfig) -> list[str]:
    problems, geometry, data = [], config.geometry, config.dataset
    least = geometry.fewest_samples / geometry.sample_rate
    if data.max_seconds < least:
        problems.append(f"dataset.max_seconds: {data.max_seconds:g} is less than two frames ({least:.3g} s)")
    if config.target.ema_start > config.target.ema_end:
        problems.append(
            f"target.ema_start: {config.target.ema_start:g} is more than target.ema_end: {config.target.ema_end:g}"
        )
    if config.train.stage == "train_decoder" and config.train.strategy == "fsdp":
        problems.append("train.strategy: fsdp does not go with train.stage: train_decoder; use ddp or deepspeed")
    if config.train.compile:
        problems.append("train.compile: the tokenizer has no compiled layers")
    if config.train.activation_checkpointing:
        problems.append("train.activation_checkpointing: not available for the tokenizer")
    return problems


def _resolved(config: TokConfig) -> TokConfig:
    """The sample rate of the size, if none is given, and the values of `train.ds_config`, which the
    saved configuration holds instead of the file's name."""
    if "sample_rate" not in config.dataset.model_fields_set:
        config = _with(config, "dataset.sample_rate", RATES[config.model.size])
    if config.train.ds_config is None:
        return config
    given = config.train.ds_config
    values = given if isinstance(given, dict) else read_ds_config(Path(given))
    for key, value in {"train.ds_config": values, **as_keys(values, stated(config))}.items():
        config = _with(config, key, value)
    return config


def _with(config: TokConfig, key: str, value: Any) -> TokConfig:
    """The configuration with another value at `section.name`, checked. Raises UserError."""
    section, _, name = key.partition(".")
    own = getattr(config, section)
    try:
        changed = type(own).model_validate({**own.model_dump(exclude_unset=True), name: value})
    except ValidationError as error:
        raise UserError("\n".join(describe(error, type(own), prefix=f"{section}."))) from None
    return config.model_copy(update={section: changed})


_SIZES = Sizes(Hyperparameters, SIZES, "seed")
SCHEMA = Schema(TokConfig, problems=_problems, more_problems=_SIZES.problems, resolved=_resolved, appendix=_SIZES.lines)
