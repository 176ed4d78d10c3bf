"""Settings for which a weights file overrides the configuration, in evaluation and export."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sjepa.config.load import stated
from sjepa.core.errors import UserError
from sjepa.s_jepa.schema import parse_config
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.sizes import hyperparameters
from sjepa.s_jepa.weights import Weights


def file_wins(
    config: Config, trained: Config, facts: dict[str, Any], *, overridden: Collection[str], path: str
) -> tuple[Config, list[str]]:
    """`config` with model, masking and clip length from the configuration `trained` in the weights
    file, and the list of replaced values, as "key theirs (not ours)".

    `facts`: keys whose values follow from the weights. `overridden`: keys set on the command line.
    Raises UserError if one of the latter contradicts the file.
    """
    own = _own(trained) | facts
    gave_way = {name: value for name, value in stated(config).items() if name in own and value != own[name]}
    wrong = [
        f"{name}={_shown(value)}: {path} was trained with {_shown(own[name])}; leave it out"
        for name, value in gave_way.items()
        if name in overridden
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    longest = trained.dataset.max_seconds
    lengths = {"max_seconds": longest, "min_seconds": min(config.dataset.min_seconds, longest)}
    settled = config.model_copy(
        update={
            "model": trained.model,
            "masking": trained.masking,
            "dataset": config.dataset.model_copy(update=lengths),
            "train": config.train.model_copy(update=_of_section("train", facts)),
            "gmm": config.gmm.model_copy(update=_of_section("gmm", facts)),
        }
    )
    return settled, [f"{name} {_shown(own[name])} (not {_shown(value)})" for name, value in gave_way.items()]


def _of_section(section: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in facts.items() if key.partition(".")[0] == section}


def _own(trained: Config) -> dict[str, Any]:
    values = hyperparameters(trained.model.size, trained.model.overrides).model_dump()
    return {
        "model.size": trained.model.size,
        "model.frontend": trained.model.frontend,
        "model.mel_statistics": trained.model.mel_statistics,
        "model.predictor_positions": trained.model.predictor_positions,
        **{f"model.overrides.{name}": value for name, value in values.items()},
        **{f"masking.{name}": value for name, value in trained.masking.model_dump().items()},
        "dataset.max_seconds": trained.dataset.max_seconds,
        "dataset.sample_rate": trained.dataset.sample_rate,
    }


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def origin(weights: Weights) -> str:
    """Epoch, step and stage at which the weights were saved."""
    progress = weights.progress
    return f"epoch {progress['epoch']}, step {progress['step']}, {weights.stage['name']}"


def settled(config: Config, weights: Weights, overridden: Collection[str]) -> tuple[Config, str]:
    """The configuration with the settings of the `init_weights` file, and a line for the log.
    Raises UserError if a key set on the command line contradicts the file."""
    path = str(config.init_weights)
    facts = {
        "train.phase": weights.stage["phase"],
        "train.use_visible_loss": weights.stage["visible_loss"],
        "gmm.num_clusters": weights.gmm.num_components,
    }
    trained = parse_config(weights.config, where=path)
    config, gave_way = file_wins(config, trained, facts, overridden=overridden, path=path)
    told = f"{path} ({origin(weights)}): model, masking and GMM are the file's own"
    return config, told + (f": {', '.join(gave_way)}" if gave_way else "")
