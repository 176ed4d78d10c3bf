"""The text of `--help-config`: every key with its default and meaning, from the schema itself."""

from __future__ import annotations

import json

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sjepa.config.load import keys
from sjepa.config.schema import Config
from sjepa.config.sizes import SIZES, Hyperparameters


def reference() -> str:
    """Every key of the configuration in the order of the schema."""
    lines = ["Configuration keys: default, then meaning. Set them in YAML or as section.key=value.", ""]
    lines += _lines(Config)
    lines += ["", "model.overrides takes (defaults of size base):", *_lines(Hyperparameters, "model.overrides.")]
    lines += ["", "Sizes:"]
    lines += [
        f"  {name}: {', '.join(f'{k} {v}' for k, v in size.items()) or 'as above'}" for name, size in SIZES.items()
    ]
    return "\n".join(lines)


def _lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for path, field in keys(model, prefix):
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines.append("")
            continue
        lines.append(f"{path} = {_default(field)}\n      {field.description}")
    return lines


def _default(field: FieldInfo) -> str:
    default = field.default
    return json.dumps(list(default) if isinstance(default, tuple) else default)
