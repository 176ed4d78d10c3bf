"""Weights in DeepSpeed's checkpoint layout: `latest`, `step<N>/`, `final/`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from sjepa.core.files import write_text
from sjepa.core.sharding import whole
from sjepa.core.torch_files import write_torch_file
from sjepa.tokenizer.task import TokenJEPATask

SHARDS, LATEST, MODEL_STATES = "jepa_encoder_ds", "latest", "mp_rank_00_model_states.pt"
PLAIN_KIND, PLAIN_FORMAT = "sjepa tokenizer states", 1
CONTENT = "sjepa"  # key of what a folder holds beside the weights
_STEP = re.compile(r"^step(\d+)$")


class ShardFolder:
    """Written by DeepSpeed itself, one file of optimiser state per process; without it one file of
    the same name with the weights."""

    def __init__(self, folder: Path, task: TokenJEPATask, *, keep: int) -> None:
        self._folder, self._task, self._keep = folder, task, keep

    def save(self, tag: str) -> None:
        """Writes `tag`, points `latest` to it, and deletes the oldest steps beyond `keep`.
        Collective."""
        parts, learner = self._task.parts, self._task.learner
        content = {CONTENT: self._content(tag)}
        if not parts.engine.save_shards(learner.model, self._folder, tag, content):
            module = whole(learner.network.state_dict())
            if parts.engine.ranks.is_main:
                path = self._folder / tag / MODEL_STATES
                write_torch_file(path, {"module": module, **content}, kind=PLAIN_KIND, format_number=PLAIN_FORMAT)
                write_text(self._folder / LATEST, tag)
        if parts.engine.ranks.is_main:
            self._rotate()

    def _content(self, tag: str) -> dict[str, Any]:
        return {
            "tag": tag,
            "shape": self._task.learner.network.shape.to_dict(),
            "targets": self._task.targets.state_dict(),
            "config": self._task.parts.config,
        }

    def _rotate(self) -> None:
        steps = sorted((int(match[1]), path) for path in self._folder.iterdir() if (match := _STEP.match(path.name)))
        for _, path in steps[: max(0, len(steps) - self._keep)]:
            shutil.rmtree(path, ignore_errors=True)
