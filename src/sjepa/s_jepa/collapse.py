"""Signs that a representation has collapsed: the loss is then low and worth nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sjepa.s_jepa.metrics import Metrics

FEWEST_FRAMES = 2000  # within an epoch; some 40 s: fewer may be one quiet clip
_FEWEST_TO_TELL = 100  # of a whole epoch
_LEAST_INFORMATION = 0.02  # of log2 K
_LEAST_ENTROPY = 0.01  # of log2 K
_LEAST_SPREAD = 0.01
_LEAST_RANK = 1.5


def collapse_signs(
    metrics: Metrics, num_clusters: int, *, spreads: Sequence[float] = (), effective_ranks: Sequence[float] = ()
) -> list[str]:
    """What is wrong, one text a sign; nothing if all is well, or if there are too few frames to tell.

    Targets that say nothing of the frame (one component takes all, or all frames are the same), predictions that are the
    same certainty everywhere, and layers whose features no longer differ between frames (`spreads`), or differ in one
    direction only (`effective_ranks`).
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
