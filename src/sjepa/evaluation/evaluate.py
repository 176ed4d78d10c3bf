"""Metrics of a trained model over a whole test set."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from sjepa.config.schedule import Stage
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.core.progress import Progress
from sjepa.dataset.loader import Loader
from sjepa.metrics import Metrics
from sjepa.targets.mfcc import FEATURES, MFCCTargets
from sjepa.training.step import StepSettings
from sjepa.training.validation import validate
from sjepa.weights import Weights

Results = dict[str, float]


def evaluate(
    engine: Engine,
    weights: Weights,
    loader: Loader,
    *,
    stage: Stage,
    settings: StepSettings,
    progress: Progress,
    warn: Callable[[str], None],
) -> Results:
    """The metrics of `weights` over every window of `loader`, in the order they are reported in.

    Raises UserError if the weights hold no mixture of phase 1, or no clip could be read.
    """
    if weights.gmm is None or weights.gmm.features != FEATURES:
        raise UserError("init_weights: the file holds no GMM over MFCC, so there are no targets to compare with")
    model = engine.to_device(weights.model)
    targets = engine.to_device(MFCCTargets(weights.gmm))
    with engine.autocast():
        validation = validate(
            engine,
            model,
            model.encoder,
            targets,
            progress(loader.epoch(0), total=loader.num_batches, label="test set"),
            stage=stage,
            settings=settings,
            warn=warn,
        )
    metrics = validation.metrics
    results: Results = {name: getattr(metrics, name) for name in Metrics.NAMES}
    results |= {"clusters_used": metrics.clusters_used, "frames": float(metrics.frames)}
    return results | {f"erank_{layer}": rank for layer, rank in enumerate(validation.effective_ranks)}


def write_results(path: Path, results: Results) -> None:
    """results.csv: metric, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("metric", "value"))
    writer.writerows((name, f"{value:.8g}") for name, value in results.items())
    write_text(path, text.getvalue())
