"""Text of `--help-config`: all keys with default and description, generated from the schema."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sjepa.config.load import Schema, keys


def reference(schema: Schema[Any]) -> str:
    """Every key of the configuration in the order of the schema."""
    lines = ["Configuration keys: default, then meaning. Set them in YAML or as section.key=value.", ""]
    return "\n".join([*lines, *key_lines(schema.root), *schema.appendix()])


def key_lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Two lines per key, a blank line per section."""
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
