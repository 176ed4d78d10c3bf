"""best.pt and last.pt: a trained model in one self-contained file, loaded without executing
code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sjepa.core.errors import UserError
from sjepa.core.torch_files import read_torch_file, write_torch_file
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.modules.encoder import Encoder

_KIND, _FORMAT = "sjepa weights", 4
_OLDER_FORMATS = (2, 3)  # 2: no space (mixture over raw features); both: no geometry


@dataclass(frozen=True)
class Weights:
    """Content of a weights file: model, target mixture, configuration and stage (plain values),
    `progress` (epoch, step, validation metrics); in phase 2 also the EMA encoder and the layer used
    for the targets. `space`: preprocessing of features for the mixture, None: none."""

    model: SJEPA
    gmm: DiagonalGMM
    config: dict[str, Any]
    stage: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    target_encoder: Encoder | None = None
    target_layer: int | None = None
    space: MixtureSpace | None = None


def save_weights(path: Path, weights: Weights) -> None:
    """Writes the file atomically."""
    gmm, encoder, space = weights.gmm, weights.target_encoder, weights.space
    content = {
        "shape": weights.model.shape.to_dict(),
        "model": weights.model.state_dict(),
        "gmm": {"features": gmm.features, "parameters": gmm.state_dict()},
        "space": None
        if space is None
        else {"settings": asdict(space.settings), "source": space.source, "parameters": space.state_dict()},
        "target_encoder": None if encoder is None else encoder.state_dict(),
        "target_layer": weights.target_layer,
        "config": weights.config,
        "stage": weights.stage,
        "progress": weights.progress,
    }
    write_torch_file(path, content, kind=_KIND, format_number=_FORMAT)


def load_weights(path: str | Path) -> Weights:
    """Loads a file of `save_weights` onto the CPU. Raises UserError if it is missing, damaged, or
    not a weights file of a supported format."""
    content = _read(Path(path))
    try:
        model = SJEPA(ModelShape.from_dict(content["shape"]))
        model.load_state_dict(content["model"])
        parameters = content["gmm"]["parameters"]
        gmm = DiagonalGMM(*parameters["means"].shape, features=content["gmm"]["features"])
        gmm.load_state_dict(parameters)
        encoder = None
        if content["target_encoder"] is not None:
            encoder = Encoder(model.shape.encoder)
            encoder.load_state_dict(content["target_encoder"])
        return Weights(
            model,
            gmm,
            dict(content["config"]),
            dict(content["stage"]),
            dict(content["progress"]),
            encoder,
            content["target_layer"],
            _space(content.get("space")),
        )
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: incomplete weights ({_one_line(error)})") from None


def read_stage(path: Path) -> dict[str, Any]:
    """The stage stored in a weights file (plain values). Raises UserError like `load_weights`."""
    return dict(_read(path)["stage"])


def _read(path: Path) -> dict[str, Any]:
    return read_torch_file(path, kind=_KIND, format_number=_FORMAT, older=_OLDER_FORMATS)


def _space(saved: dict[str, Any] | None) -> MixtureSpace | None:
    if saved is None:
        return None
    speakers = saved["parameters"].get("speaker_S", torch.zeros(0)).tolist()
    space = MixtureSpace(SpaceSettings(**saved["settings"]), saved["source"], speakers=speakers)
    space.load_state_dict(saved["parameters"])
    return space


def tensor_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a module's tensors, to compare whether weights are compatible."""
    return {name: value.shape for name, value in module.state_dict().items()}


def transfer(source: nn.Module, target: nn.Module, *, leave_out: str = "") -> list[str]:
    """Copies all tensors with matching name and shape, except names that start with `leave_out`.
    Returns the names in `target` that were not loaded."""
    given, own = source.state_dict(), target.state_dict()
    fitting = {
        name: value
        for name, value in given.items()
        if name in own and own[name].shape == value.shape and not (leave_out and name.startswith(leave_out))
    }
    target.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
