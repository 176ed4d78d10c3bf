"""Sections of a run's report: entropies, units, probes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sjepa.core.frames import FrameGeometry
from sjepa.dataset.clips import Clips
from sjepa.dataset.windows import Windows
from sjepa.evaluation.scores import ProbeRow
from sjepa.reporting.page import paragraph, plots, table
from sjepa.reporting.plots import svg
from sjepa.s_jepa.units.listening import listening
from sjepa.s_jepa.units.pictures import components_picture, entropies_picture, probes_picture
from sjepa.s_jepa.units.survey import Survey
from sjepa.training.report import Section


def unit_sections(found: Survey, clips: Clips, windows: Windows, geometry: FrameGeometry) -> list[Section]:
    """Entropy histograms, and the components to listen to. `windows`: those that were surveyed."""
    readings = (
        ("Encoder, nothing masked", found.encoder),
        ("Predictor, at masked frames", found.predictor),
        ("Targets", found.targets),
    )
    pictures = [(svg(entropies_picture([reading])), "") for reading in readings]
    units = listening(found, clips, windows, geometry)
    if found.components.has_phones:
        units += plots([(svg(components_picture(found.components)), "Units and phones.")])
    return [Section("Entropies", plots(pictures)), Section("Units", units)]


def probe_section(rows: Sequence[ProbeRow]) -> Section:
    """Table with 95 % confidence intervals, and bars."""
    names = ("task", "probe", "metric", "features", "layer", "result", "95 % interval", "chance", "test examples")
    shown = [
        (
            row.task,
            row.probe,
            row.metric,
            row.features,
            row.layer,
            f"{row.mean:.3f}" + ("" if math.isnan(row.deviation) else f" ± {row.deviation:.3f}"),
            "" if math.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}",
            "" if math.isnan(row.chance) else f"{row.chance:.3f}",
            row.test,
        )
        for row in rows
    ]
    why = "Accuracy is better if higher, error if lower; intervals by bootstrap over speakers, where they are known."
    return Section("Probes", paragraph(why) + table(names, shown) + plots([(svg(probes_picture(rows)), "")]))
