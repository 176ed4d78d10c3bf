"""Going on with an interrupted run: which checkpoint, and whether the configuration still means the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError

# What may change between the parts of one run; everything else would make it another run.
_FREE = ("train.epochs", "train.max_steps", "train.log_every", "train.devices", "train.num_nodes",
         "train.strategy", "train.probe_memory", "dataset.num_workers", "checkpoint.", "health.", "logging.")  # fmt: skip


def differences(used: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`key: old → new` for every key that differs and must not."""
    old, new = _flat(used), _flat(wanted)
    names = [*new, *(name for name in old if name not in new)]
    changed = [name for name in names if old.get(name) != new.get(name) and not name.startswith(_FREE)]
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in changed]


def refuse_differences(used: dict[str, Any], wanted: dict[str, Any], run: Path) -> None:
    """Raises UserError with the list of keys that differ from those of the run to be continued."""
    changed = differences(used, wanted)
    if changed:
        raise UserError(
            "\n".join(
                [
                    f"checkpoint.resume: {run} was made with another configuration; change back or start a new run:",
                    *changed,
                ]
            )
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
