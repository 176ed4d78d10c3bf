"""What a weights file decides, and how that is said."""

from __future__ import annotations

from collections.abc import Collection

from sjepa.config.load import parse_config
from sjepa.config.ownership import file_wins
from sjepa.config.schema import Config
from sjepa.weights import Weights


def origin(weights: Weights) -> str:
    """Where in training weights were written."""
    progress = weights.progress
    return f"epoch {progress['epoch']}, step {progress['step']}, {weights.stage['name']}"


def settled(config: Config, weights: Weights, overridden: Collection[str]) -> tuple[Config, str]:
    """The configuration with what the file of `init_weights` decides, and one line that says so. Raises UserError if a key
    set on the command line contradicts the file."""
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
