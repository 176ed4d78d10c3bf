"""Named sizes of a network, and `model.overrides`, which replaces single hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from sjepa.config.load import describe
from sjepa.config.reference import key_lines

_PREFIX = "model.overrides."


class Sizes(NamedTuple):
    """`model`: the hyperparameters, with the values of size `default`; `named`: what the other
    sizes set."""

    model: type[BaseModel]
    named: Mapping[str, Mapping[str, Any]]
    default: str

    def problems(self, values: dict[str, Any]) -> list[str]:
        """Problems of `model.overrides` in raw values; they depend on `model.size`."""
        section = values.get("model")
        given = section if isinstance(section, dict) else {}
        overrides, size = given.get("overrides", {}), given.get("size", self.default)
        if not isinstance(overrides, dict) or not isinstance(size, str) or size not in self.named:
            return []
        try:
            self.model.model_validate({**self.named[size], **overrides})
        except ValidationError as error:
            return describe(error, self.model, prefix=_PREFIX)
        return []

    def lines(self) -> list[str]:
        """Lines for `--help-config`."""
        keys = ["", f"model.overrides takes (defaults of size {self.default}):", *key_lines(self.model, _PREFIX)]
        sizes = [
            f"  {name}: {', '.join(f'{key} {value}' for key, value in size.items()) or 'as above'}"
            for name, size in self.named.items()
        ]
        return [*keys, "", "Sizes:", *sizes]
