"""Shell completion: options, files, and the keys of the configuration."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

from sjepa.config.load import Schema, keys


def completion(parser: argparse.ArgumentParser, shell: str, schema: Schema[Any] | None) -> str:
    """The script for `shell`, to be read by it at its start. `schema`: of the keys that the command
    takes."""
    known = [] if schema is None else keys(schema.root)
    names = [path for path, field in known if not hasattr(field.annotation, "model_fields")]
    words = " ".join(f"{name}=" for name in names)
    function = f"_{parser.prog}_keys"
    for action in parser._actions:
        if action.dest in ("overrides", "inputs"):
            action.complete = {"bash": function, "zsh": function}  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "PATH", "AUDIO"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    preamble: Any = {
        "bash": f'{function}() {{ compopt -o nospace -o default; compgen -W "{words}" -- "$1"; }}',
        "zsh": f"{function}() {{ compadd -S '' -- {words}; _files; }}",
    }
    return str(shtab.complete(parser, shell, preamble=preamble))
