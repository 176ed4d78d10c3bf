"""best.pt and last.pt of stage 1: network and target in one self-contained file, loaded without
executing code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.torch_files import read_torch_file, write_torch_file
from sjepa.tokenizer.network import TokenJEPA, TokenJEPAShape
from sjepa.tokenizer.targets import TokenTargets

KIND, FORMAT = "sjepa tokenizer encoder", 1


@dataclass(frozen=True)
class TokenWeights:
    """Content of a file: network, target encoder with its normalisation, configuration (plain
    values) and progress (epoch, step, validation metrics)."""

    network: TokenJEPA
    targets: TokenTargets
    config: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)


def save_weights(path: Path, weights: TokenWeights) -> None:
    """Writes the file atomically."""
    content = {
        "shape": weights.network.shape.to_dict(),
        "model": weights.network.state_dict(),
        "targets": weights.targets.state_dict(),
        "config": weights.config,
        "progress": weights.progress,
    }
    write_torch_file(path, content, kind=KIND, format_number=FORMAT)


def load_weights(path: Path) -> TokenWeights:
    """Loads a file of `save_weights` onto the CPU. Raises UserError if it is missing, damaged, or
    not such a file."""
    content = read_torch_file(path, kind=KIND, format_number=FORMAT)
    try:
        network = TokenJEPA(TokenJEPAShape.from_dict(content["shape"]))
        network.load_state_dict(content["model"])
        targets = TokenTargets(network.encoder)
        targets.load_state_dict(content["targets"])
        return TokenWeights(network, targets, dict(content["config"]), dict(content["progress"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: incomplete weights ({' '.join(str(error).split())})") from None
