"""The systems that share the engine, by name. A command belongs to one of them: no configuration has to say which."""

from __future__ import annotations

from sjepa.s_jepa.method import S_JEPA
from sjepa.training.system import System

SYSTEMS: dict[str, System] = {system.name: system for system in (S_JEPA,)}
