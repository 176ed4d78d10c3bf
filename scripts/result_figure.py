"""The picture at the top of the README, from an evaluation: `python -m scripts.result_figure
runs/NAME/eval`. Above its utterance.jpg, below the probes of probes.csv."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib.figure import Figure

TARGET = Path(__file__).parents[1] / "docs/images/result.png"
PANELS = (
    ("frame_phones", "linear", "accuracy", "phones: accuracy (higher is better)"),
    ("abx", "triphones", "across", "ABX across speakers: error (lower is better)"),
    ("speaker", "logistic", "accuracy", "speakers: accuracy (higher is better)"),
)
COLOURS = {"trained": "#2f6db3", "untrained": "#98a4af"}
DPI, WIDTH = 150, 10.0


def main(folder: Path) -> None:
    """Writes the picture."""
    with (folder / "probes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    above = Image.open(folder / "utterance.jpg").convert("RGB")
    below = Image.open(bars(rows)).convert("RGB")
    width = below.width
    above = above.resize((width, round(above.height * width / above.width)), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (width, above.height + below.height), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    whole.quantize(256).save(TARGET, optimize=True)
    print(TARGET)


def bars(rows: list[dict[str, str]]) -> io.BytesIO:
    """One panel per task, features as bars, with 95 % confidence intervals over speakers."""
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained", dpi=DPI)
    for axes, (task, probe, metric, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        own = [row for row in rows if (row["task"], row["probe"], row["metric"]) == (task, probe, metric)][::-1]
        means = [float(row["mean"]) for row in own]
        errors = [[mean - float(row["low"]) for mean, row in zip(means, own, strict=True)],
                  [float(row["high"]) - mean for mean, row in zip(means, own, strict=True)]]  # fmt: skip
        names = ["trained" if row["features"].endswith(".pt") else row["features"] for row in own]
        colours = [COLOURS.get(name, "#c9a36a") for name in names]
        axes.barh(range(len(own)), means, xerr=errors, color=colours, height=0.7, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(own)), names, fontsize=8)
        axes.set_title(title, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    return drawn


if __name__ == "__main__":
    main(Path(sys.argv[1]))
