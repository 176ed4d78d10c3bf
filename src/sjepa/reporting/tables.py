"""What an evaluation prints at its end."""

from __future__ import annotations

from collections.abc import Sequence

from sjepa.evaluation.probing import ProbeRow


def probe_table(rows: Sequence[ProbeRow]) -> str:
    """A block per probe and metric, one source of features per line."""
    lines: list[str] = []
    for title in dict.fromkeys(row[:3] for row in rows):
        own = [row for row in rows if row[:3] == title]
        chance = f", the most frequent class {own[0].chance:.4f}" if own[0].chance == own[0].chance else ""
        task, probe, metric = title
        lines.append(f"{task}, {probe}: {metric} ({own[0].train:,} to train, {own[0].test:,} to test{chance})")
        for row in own:
            name = row.features + (f", layer {row.layer}" if row.layer else "")
            spread = f" ± {row.deviation:.4f} ({row.splits} splits)" if row.splits > 1 else ""
            lines.append(f"    {name:<44} {row.mean:.4f}{spread}")
    return "\n".join(lines)
