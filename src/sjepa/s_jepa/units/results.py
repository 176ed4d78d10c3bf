"""Metrics of a trained model on the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sjepa.core.distributed import Engine
from sjepa.dataset.batch import Batch
from sjepa.modules.ema import EMAEncoder
from sjepa.s_jepa.step import Forward, StepSettings
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.targets.frozen import MFCCTargets
from sjepa.s_jepa.targets.layer_choice import LayerChoice
from sjepa.s_jepa.targets.online import OnlineSettings, OnlineTargets
from sjepa.s_jepa.validation import Validator
from sjepa.s_jepa.weights import Weights

Results = dict[str, float]


def evaluate(
    engine: Engine,
    weights: Weights,
    batches: Iterable[Batch],
    *,
    settings: StepSettings,
    warn: Callable[[str], None],
) -> Results:
    """Metrics of `weights` over `batches`, in reporting order, with the targets and loss frames of
    the stage in which the weights were saved.

    Raises SharedError if no clip could be read.
    """
    model = engine.to_device(weights.model)
    validator = Validator(Forward(engine, model, settings), model.encoder, saved_targets(engine, weights))
    found = validator.measure(batches, visible=weights.stage["visible_loss"], warn=warn)
    results: Results = {**found.metrics.named(), "clusters_used": found.metrics.clusters_used}
    results["frames"] = float(found.metrics.frames)
    return results | {f"erank_{layer}": value for layer, value in enumerate(found.effective_ranks)}


def saved_targets(engine: Engine, weights: Weights) -> Targets:
    """The latest training targets of a model, restored from its weights file."""
    if weights.target_encoder is None or weights.target_layer is None:
        return engine.to_device(MFCCTargets(weights.gmm, weights.model.encoder.geometry, weights.space))
    choice = LayerChoice(weights.target_layer, smoothing=0.0)
    settings = OnlineSettings(parameter_decay=1.0, ema_decay=lambda step: 1.0, layer_check_every=None)
    average = EMAEncoder(weights.target_encoder)
    return engine.to_device(OnlineTargets(weights.gmm, average, choice, settings, weights.space))
