"""Metrics of a trained model over a whole test set."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from sjepa.core.distributed import Engine
from sjepa.core.files import write_text
from sjepa.core.progress import Progress
from sjepa.dataset.loader import Loader
from sjepa.metrics import Metrics
from sjepa.modules.ema import EMAEncoder
from sjepa.targets.base import Targets
from sjepa.targets.layer_choice import LayerChoice
from sjepa.targets.mfcc import MFCCTargets
from sjepa.targets.online import OnlineSettings, OnlineTargets
from sjepa.training.step import StepSettings
from sjepa.training.validation import validate
from sjepa.weights import Weights

Results = dict[str, float]


def evaluate(
    engine: Engine,
    weights: Weights,
    loader: Loader,
    *,
    settings: StepSettings,
    progress: Progress,
    warn: Callable[[str], None],
) -> Results:
    """The metrics of `weights` over every window of `loader`, in the order they are reported in: against the targets, and
    over the frames, of the stage that the weights were trained in.

    Raises UserError if no clip could be read.
    """
    model = engine.to_device(weights.model)
    validation = validate(
        engine,
        model,
        model.encoder,
        saved_targets(engine, weights),
        progress(loader.epoch(0), total=loader.num_rounds, label="test set"),
        visible=weights.stage["visible_loss"],
        settings=settings,
        warn=warn,
    )
    metrics = validation.metrics
    results: Results = {name: getattr(metrics, name) for name in Metrics.NAMES}
    results |= {"target_entropy_bits": metrics.target_entropy_bits, "clusters_used": metrics.clusters_used}
    results["frames"] = float(metrics.frames)
    return results | {f"erank_{layer}": rank for layer, rank in enumerate(validation.effective_ranks)}


def saved_targets(engine: Engine, weights: Weights) -> Targets:
    """The targets that a model was trained towards last, as its file holds them."""
    if weights.target_encoder is None or weights.target_layer is None:
        return engine.to_device(MFCCTargets(weights.gmm, weights.model.encoder.geometry, weights.space))
    choice = LayerChoice(weights.target_layer, smoothing=0.0)
    settings = OnlineSettings(parameter_decay=1.0, ema_decay=lambda step: 1.0, layer_check_every=None)
    average = EMAEncoder(weights.target_encoder)
    return engine.to_device(OnlineTargets(weights.gmm, average, choice, settings, weights.space))


def write_results(path: Path, results: Results) -> None:
    """results.csv: metric, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("metric", "value"))
    writer.writerows((name, f"{value:.8g}") for name, value in results.items())
    write_text(path, text.getvalue())
