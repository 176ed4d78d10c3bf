"""Loading and validation of an S-JEPA configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sjepa.config import load
from sjepa.config.load import Schema
from sjepa.config.sizes import Sizes
from sjepa.core.model_hub import fetched, is_hub
from sjepa.s_jepa.plan import plan_problems, reaches_phase2
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.sizes import SIZES, Hyperparameters, hyperparameters


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """See `config.load.load_config`. Weights on the Hugging Face Hub are downloaded."""
    config = load.load_config(SCHEMA, path, overrides)
    if config.init_weights is None or not is_hub(config.init_weights):
        return config
    return config.model_copy(update={"init_weights": str(fetched(config.init_weights, "init_weights"))})


def parse_config(values: dict[str, Any], *, where: str = "configuration") -> Config:
    """See `config.load.parse_config`."""
    return load.parse_config(SCHEMA, values, where=where)


def _resolved(config: Config) -> Config:
    """If not set, limits `gmm.ema_layer` to the top layer of the model, for runs with an online
    mixture."""
    top = hyperparameters(config.model.size, config.model.overrides).num_layers - 1
    if "ema_layer" in config.gmm.model_fields_set or config.gmm.ema_layer <= top or not reaches_phase2(config):
        return config
    return config.model_copy(update={"gmm": config.gmm.model_copy(update={"ema_layer": top})})


_SIZES = Sizes(Hyperparameters, SIZES, "base")
SCHEMA = Schema(
    Config, problems=plan_problems, more_problems=_SIZES.problems, resolved=_resolved, appendix=_SIZES.lines
)
