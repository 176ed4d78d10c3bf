"""The weights saved by a run: the last, and the best of each phase."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sjepa.core.files import atomic_path
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.weights import Weights, read_stage, save_weights


@dataclass(frozen=True)
class WeightsFolder:
    """`last.pt`, `best.pt` of the current phase (or of the run, if the metric is comparable across
    phases), `best_phase1.pt` after phase 1."""

    folder: Path
    config: dict[str, Any]
    writes: bool = True  # False on ranks other than 0

    def save(
        self, network: SJEPA, targets: Targets, stage: SJEPAStage, progress: dict[str, Any], *, is_best: bool
    ) -> None:
        """Writes last.pt, and best.pt if `is_best`. `progress`: epoch, step and validation
        figures."""
        network = network.in_one_piece()
        if not self.writes:
            return
        weights = Weights(
            network,
            targets.gmm,
            self.config,
            asdict(stage),
            progress,
            None if targets.encoder is None else targets.encoder.average,
            targets.layer,
            targets.space,
        )
        save_weights(self.folder / "last.pt", weights)
        if is_best:
            save_weights(self.folder / "best.pt", weights)

    def close_phase(self, phase: int, *, stays_best: bool) -> None:
        """Moves best.pt of a finished phase to best_phase{phase}.pt, or copies it with
        `stays_best`. A best.pt of another phase (after resuming from an older checkpoint) is left
        in place."""
        best = self.folder / "best.pt"
        if not self.writes or not best.exists() or read_stage(best)["phase"] != phase:
            return
        aside = self.folder / f"best_phase{phase}.pt"
        if not stays_best:
            best.replace(aside)
            return
        with atomic_path(aside) as temporary:
            shutil.copyfile(best, temporary)
