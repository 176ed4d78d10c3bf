"""Result table of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from sjepa.evaluation.scores import ProbeRow


def probe_table(rows: Sequence[ProbeRow]) -> str:
    """One block per probe and metric, one line per feature extractor and layer."""
    lines: list[str] = []
    for title in dict.fromkeys(row[:3] for row in rows):
        own = [row for row in rows if row[:3] == title]
        chance = f", chance (most frequent class) {own[0].chance:.4f}" if own[0].chance == own[0].chance else ""
        task, probe, metric = title
        trained = f"{own[0].train:,} to train, " if own[0].train else ""
        sure = "; in brackets: 95 % confidence over speakers" if any(row.low == row.low for row in own) else ""
        lines.append(f"{task}, {probe}: {metric} ({trained}{own[0].test:,} to test{chance}{sure})")
        for row in own:
            name = row.features + (f", layer {row.layer}" if row.layer else "")
            spread = f" ± {row.deviation:.4f} ({row.splits} splits)" if row.splits > 1 else ""
            sure = f"  [{row.low:.4f}, {row.high:.4f}]" if row.low == row.low else ""
            lines.append(f"    {name:<44} {row.mean:.4f}{spread}{sure}")
    return "\n".join(lines)
