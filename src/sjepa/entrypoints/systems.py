"""Registered systems, by name. Each command selects its system; it is not a configuration key."""

from __future__ import annotations

from sjepa.s_jepa.method import S_JEPA
from sjepa.tokenizer.codec.method import TOKENIZER_DECODER
from sjepa.tokenizer.method import TOKENIZER_ENCODER
from sjepa.training.system import System

SYSTEMS: dict[str, System] = {system.name: system for system in (S_JEPA, TOKENIZER_ENCODER, TOKENIZER_DECODER)}
