"""Text of `--help-config`: all keys with default and description, generated from the schema."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sjepa.config.load import Schema, keys
from sjepa.core.errors import UserError


def reference(schema: Schema[Any], section: str = "") -> str:
    """The keys of the configuration in the order of the schema; with `section`, those below it.
    Raises UserError if there are none."""
    if not section:
        lines = ["Configuration keys: default, then meaning. Set them in YAML or as section.key=value.", ""]
        return "\n".join([*lines, *key_lines(schema.root), *schema.appendix()])
    chosen = [line for line in key_lines(schema.root) if line.startswith((f"{section}.", f"{section} "))]
    appendix = schema.appendix() if section == "model" else []
    if not chosen:
        sections = dict.fromkeys(path.partition(".")[0] for path, _ in keys(schema.root) if "." in path)
        raise UserError(f"--help-config: {section} is no section; there are {', '.join(sections)}")
    return "\n".join([*chosen, *appendix])


def json_schema(schema: Schema[Any]) -> str:
    """A JSON schema of the configuration file, which editors check and complete YAML by."""
    found = schema.root.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=1)


def key_lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Two lines per key, a blank line per section."""
    lines = []
    for path, field in keys(model, prefix):
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines.append("")
            continue
        lines.append(f"{path} = {_default(field)}\n      {meaning(field)}")
    return lines


def meaning(field: FieldInfo) -> str:
    """The description of a key, with its values where it takes a few only."""
    values = _values(field.annotation)
    return f"{field.description} Values: {', '.join(values)}." if values else f"{field.description}"


def _values(annotation: Any) -> list[str]:
    """Those of a Literal, and null where None is allowed."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [json.dumps(part) if isinstance(part, bool) else str(part) for part in parts]
    found = [value for part in parts for value in _values(part)]
    return [
        *found,
        *(["null"] if found and type(None) in parts else []),
        *(["true, false"] if found and bool in parts else []),
    ]


def _default(field: FieldInfo) -> str:
    default = field.default
    return json.dumps(list(default) if isinstance(default, tuple) else default)
