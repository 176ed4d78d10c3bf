"""Writes docs/keys.md, the reference of all keys, from the schemas: `python -m scripts.keys_page`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sjepa.config.load import Schema, keys
from sjepa.config.reference import meaning
from sjepa.entrypoints.codec_quality import SCHEMA as CODEC_EVALUATION
from sjepa.entrypoints.tokens import SCHEMA as TOKENS
from sjepa.s_jepa.schema import SCHEMA
from sjepa.s_jepa.sizes import Hyperparameters
from sjepa.tokenizer.schema import SCHEMA as TOKENIZER
from sjepa.tokenizer.sizes import Hyperparameters as TokenizerHyperparameters

PAGE = Path(__file__).parents[1] / "docs/keys.md"
START = """# Keys of the configuration

Generated from the schemas by `python -m scripts.keys_page`; on the terminal `trainsjepa
--help-config SECTION`. Set them in YAML or as `section.key=value`. `trainsjepa --config-schema`
prints a JSON schema, which editors complete and check YAML by.
"""


def page() -> str:
    """The text of the page."""
    known: set[str] = set()
    parts = [START, "Keys of `model.overrides` are at the end.", ""]
    for title, schema in (("", SCHEMA), ("traintok", TOKENIZER), ("evaltok", CODEC_EVALUATION), ("runtok", TOKENS)):
        parts += section_tables(schema, title, known)
    for title, own in (("model.overrides", Hyperparameters), ("model.overrides (traintok)", TokenizerHyperparameters)):
        parts += [f"## {title}", "", *table(line_of(path, field) for path, field in keys(own)), ""]
    return "\n".join(parts)


def section_tables(schema: Schema, title: str, known: set[str]) -> list[str]:
    """A table per section, of the keys that are not `known` yet, and adds them to these."""
    tables: dict[str, list[str]] = {}
    for path, field in keys(schema.root):
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        line = line_of(path, field)
        if line not in known:
            tables.setdefault(path.partition(".")[0] if "." in path else "run", []).append(line)
            known.add(line)
    ending = f" ({title})" if title else ""
    return [line for name, rows in tables.items() for line in (f"## {name}{ending}", "", *table(rows), "")]


def line_of(path: str, field: FieldInfo) -> str:
    default = json.dumps(list(field.default) if isinstance(field.default, tuple) else field.default)
    text = meaning(field).replace("|", "\\|").replace("\n", " ")
    return f"| `{path}` | `{default}` | {text} |"


def table(rows: Iterable[str]) -> list[str]:
    return ["| key | default | meaning |", "|---|---|---|", *rows]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
