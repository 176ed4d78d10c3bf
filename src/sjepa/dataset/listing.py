"""Sources of clips and their listings (before clips are inspected)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sjepa.core.files import printable
from sjepa.dataset.endings import AUDIO, KNOWN_OTHERS, is_hidden
from sjepa.dataset.hub import HubOptions


@dataclass(frozen=True)
class Source:
    """One folder, archive, HDF5 file or manifest on disk, or one split of a Hugging Face data set;
    `kind`: its container format."""

    path: Path
    kind: str
    hub: HubOptions | None = None

    @property
    def identity(self) -> tuple[Path, HubOptions | None]:
        """Equal for different spellings of the same source."""
        return self.path.resolve(), self.hub


@dataclass(frozen=True, slots=True)
class AudioRef:
    """One listed clip, not yet inspected: its path inside the source (for a manifest: relative to
    it, or absolute) and the location of its bytes.

    `offset`/`size` are byte positions for containers that are read directly (tar, stored zip
    entries), else −1. `start_seconds`/`duration_seconds` select a segment of the file (JSONL
    manifests).
    """

    name: str
    offset: int = -1
    size: int = -1
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass
class Listing:
    """Clips of a source in a fixed order, and dropped entries with the reason."""

    refs: list[AudioRef] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)  # skipped files by extension

    def takes(self, name: str) -> bool:
        """Whether the name has an audio extension; unknown extensions are counted."""
        if is_hidden(name):
            return False
        ending = os.path.splitext(name)[1].lower()
        if ending not in AUDIO and ending not in KNOWN_OTHERS:
            self.passed[ending] += 1
        return ending in AUDIO

    @property
    def remarks(self) -> list[str]:
        """A line on skipped files."""
        if not self.passed:
            return []
        kinds = ", ".join(
            f"{count:,} {printable(ending) or 'without ending'}" for ending, count in self.passed.most_common(8)
        )
        return [f"skipped by file ending: {kinds}"]
