"""Detection of collapse in stage 1: targets that no longer tell frames apart are predicted without
error."""

from __future__ import annotations

from sjepa.tokenizer.metrics import Metrics

FEWEST_FRAMES = 500  # masked ones, for any check
_LEAST_DEVIATION = 0.05  # layer-normalised features have a mean square of 1
_LEAST_RANK_SHARE = 0.05  # of the width


def collapse_signs(metrics: Metrics, width: int, *, rank: float | None = None) -> list[str]:
    """One message per sign; empty if there is none or there are too few frames."""
    if metrics.frames < FEWEST_FRAMES:
        return []
    signs = []
    if metrics.deviation < _LEAST_DEVIATION:
        signs.append(f"the targets hardly differ from frame to frame (deviation {metrics.deviation:.3f})")
    if rank is not None and rank < max(1.5, _LEAST_RANK_SHARE * width):
        signs.append(f"the targets vary in few directions (effective rank {rank:.1f} of {width})")
    return signs
