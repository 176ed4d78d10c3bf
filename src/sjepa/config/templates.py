"""The configurations that ship with the package: those of `cpu/configs` and `gpu/configs`."""

from __future__ import annotations

from pathlib import Path

from sjepa.core.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_SETS = ("cpu", "gpu")


def template(name: str, *, default_set: str) -> str:
    """The text of a shipped configuration: `train_twophase`, or with its set, `gpu/train_twophase`.
    Raises UserError if there is none of that name."""
    found = _templates()
    wanted = name.removesuffix(".yaml")
    path = found.get(wanted) or found.get(f"{default_set}/{wanted}")
    if path is None:
        raise UserError(f"--template: {name} is none of {', '.join(sorted(found))}")
    return path.read_text(encoding="utf-8")


def _templates() -> dict[str, Path]:
    """By set and name: in a wheel inside the package, in a clone beside its sources."""
    homes = {name: (_PACKAGE / "templates" / name, _PACKAGE.parents[1] / name / "configs") for name in _SETS}
    return {
        f"{name}/{path.stem}": path
        for name, folders in homes.items()
        for path in next((sorted(folder.glob("*.yaml")) for folder in folders if folder.is_dir()), [])
    }
