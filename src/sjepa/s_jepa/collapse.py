"""Detection of representation collapse, in which the loss is low but meaningless."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sjepa.s_jepa.metrics import Metrics

FEWEST_FRAMES = 2000  # within an epoch: about 40 s, so that one silent clip raises no alarm
_FEWEST_TO_TELL = 100  # frames, for any check
_LEAST_INFORMATION = 0.02  # of log2 K
_LEAST_ENTROPY = 0.01  # of log2 K
_LEAST_SPREAD = 0.01
_LEAST_RANK = 1.5


def collapse_signs(
    metrics: Metrics, num_clusters: int, *, spreads: Sequence[float] = (), effective_ranks: Sequence[float] = ()
) -> list[str]:
    """One message per sign of collapse; empty if there is none or there are too few frames.

    Checked are targets without information about the frame (one component takes all, or all frames
    have the same posterior), predictions of near-zero entropy, and layers whose features are
    constant across frames (`spreads`) or vary in one direction only (`effective_ranks`).
    """
    if metrics.frames < _FEWEST_TO_TELL:
        return []
    most_bits = math.log2(num_clusters)
    signs = []
    information = math.log2(max(metrics.clusters_used, 1.0)) - metrics.target_entropy_bits
    if information < _LEAST_INFORMATION * most_bits:
        signs.append(
            f"the targets tell frames apart by {max(0.0, information):.2f} bits of {most_bits:.1f} "
            f"({metrics.clusters_used:.1f} of {num_clusters} components in use)"
        )
    if metrics.entropy_bits < _LEAST_ENTROPY * most_bits:
        signs.append(f"the predictions are certain everywhere (entropy {metrics.entropy_bits:.3f} bits)")
    for name, values, least in (("spread", spreads, _LEAST_SPREAD), ("effective rank", effective_ranks, _LEAST_RANK)):
        low = [layer for layer, value in enumerate(values) if value < least]
        if low:
            shown = ", ".join(f"{values[layer]:.2g} in layer {layer}" for layer in low)
            signs.append(f"frames hardly differ any more ({name} {shown})")
    return signs
