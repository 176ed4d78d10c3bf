"""Writes docs/keys.md, the reference of all keys, from the schemas: `python -m scripts.keys_page`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from sjepa.config.load import Schema, keys
from sjepa.s_jepa.schema import SCHEMA
from sjepa.tokenizer.schema import SCHEMA as TOKENIZER

PAGE = Path(__file__).parents[1] / "docs/keys.md"
START = """# Keys of the configuration

Generated from the schemas by `python -m scripts.keys_page`; on the terminal `trainsjepa
--help-config SECTION`. Set them in YAML or as `section.key=value`. `trainsjepa --config-schema`
prints a JSON schema, which editors complete and check YAML by.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([START, *section_tables(SCHEMA, "S-JEPA", set()), *tokenizer_tables()])


def tokenizer_tables() -> list[str]:
    """Sections of the tokenizer that differ from those of S-JEPA."""
    known = {line for line in section_tables(SCHEMA, "", set()) if line.startswith("|")}
    return section_tables(TOKENIZER, "Tokenizer", known)


def section_tables(schema: Schema, title: str, known: set[str]) -> list[str]:
    """A table per section, of the keys that are not `known`."""
    tables: dict[str, list[str]] = {}
    for path, field in keys(schema.root):
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = json.dumps(list(field.default) if isinstance(field.default, tuple) else field.default)
        text = (field.description or "").replace("|", "\\\\|").replace("\n", " ")
        line = f"| `{path}` | `{default}` | {text} |"
        if line not in known:
            tables.setdefault(path.partition(".")[0] if "." in path else "run", []).append(line)
    lines = [f"# {title}", ""]
    for name, rows in tables.items():
        lines += [
            f"## {name}{'' if title == 'S-JEPA' else ' (tokenizer)'}",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
