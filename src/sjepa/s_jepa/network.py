"""Builds the network from the configuration and initialises its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from sjepa.core.errors import UserError
from sjepa.core.random import key
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.hubert import load_hubert
from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.modules.encoder import EncoderShape
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.sizes import Hyperparameters, hyperparameters
from sjepa.s_jepa.weights import load_weights, tensor_shapes, transfer


def model_shape(config: Config, num_clusters: int) -> ModelShape:
    """The model shape of section `model`, with predictor positions for `dataset.max_seconds`."""
    values: Hyperparameters = hyperparameters(config.model.size, config.model.overrides)
    transformer = TransformerShape(
        values.width,
        values.num_heads,
        values.ffn_width,
        values.dropout,
        values.attention_dropout,
        values.activation_dropout,
    )
    encoder = EncoderShape(
        values.conv_channels,
        values.num_layers,
        transformer,
        values.position_kernel,
        values.position_groups,
        values.frontend_gradient_scale,
        config.model.frontend,
        config.model.mel_statistics,
        config.geometry,
    )
    rate = values.predictor_dropout
    predictor = TransformerShape(values.width, values.predictor_heads, values.predictor_ffn_width, rate, rate, rate)
    max_frames = encoder.geometry.frames(round(config.dataset.max_seconds * config.dataset.sample_rate))
    return ModelShape(
        encoder,
        predictor,
        num_clusters,
        max_frames,
        config.model.predictor_positions,
        config.train.spectral_warmup > 0,
    )


def new_model(config: Config, stage: SJEPAStage) -> SJEPA:
    """The network of a stage, initialised from the seed."""
    torch.manual_seed(key(config.seed, "model"))
    model = SJEPA(model_shape(config, stage.num_clusters))
    model.encoder.recompute_activations(config.train.activation_checkpointing)
    if config.train.freeze is not None:
        model.encoder.freeze(config.train.freeze)
    return model


def build_model(config: Config, stage: SJEPAStage, *, note: Callable[[str], None]) -> SJEPA:
    """The network of the first stage: initialised from the seed, or from the tensors of
    `init_weights` that match in shape. If `init_weights` is a directory, it is a Hugging Face
    HuBERT folder and only the encoder is loaded. A head trained on other components is not
    loaded."""
    model = new_model(config, stage)
    if config.init_weights is None:
        return model
    path = Path(config.init_weights)
    if not path.exists():
        raise UserError(
            f"init_weights: {path}: no such file; give weights of a run (best.pt) or a Hugging Face HuBERT folder"
        )
    if path.is_dir():
        load_hubert(path, model.encoder)
        note(f"encoder from {path}; new: head, predictor")
        return model
    weights = load_weights(path)
    source = weights.model
    if tensor_shapes(source.encoder) != tensor_shapes(model.encoder):
        raise UserError(
            f"init_weights: {path} holds an encoder of another shape than model.size {config.model.size} describes: "
            f"{_differences(source.shape.encoder, model.shape.encoder)}"
        )
    same_targets = weights.stage["targets"] == stage.targets and source.shape.num_clusters == stage.num_clusters
    same_targets &= stage.targets == "mfcc" or config.gmm.path is not None  # else a mixture fitted anew
    own = transfer(source, model, leave_out="" if same_targets else "head.")
    rebuilt = f"; new: {', '.join(_rebuilt(own, source, model))}" if own else ""
    note(f"weights from {path}{rebuilt}")
    return model


def _differences(given: EncoderShape, wanted: EncoderShape) -> str:
    """Describes how two encoder shapes differ, apart from dropout rates."""
    own, other = ({**asdict(shape), **asdict(shape.transformer)} for shape in (given, wanted))
    names = [name for name in own if name != "transformer" and "dropout" not in name and own[name] != other[name]]
    return ", ".join(f"{name} {own[name]} (not {other[name]})" for name in names)


def _rebuilt(names: list[str], source: SJEPA, model: SJEPA) -> list[str]:
    """Describes the parts of `model` that could not be loaded from `source`."""
    texts = {
        "head": f"head (other targets, K {source.shape.num_clusters} → {model.shape.num_clusters})",
        "predictor.layer_norm": "norm of the predictor's positions",
        "spectrum": "spectrum head",
        "predictor.positions": f"predictor positions ({_positions(source)} → {_positions(model)})",
    }
    found = {next((start for start in texts if name.startswith(start)), name) for name in names}
    return sorted(texts.get(start, start) for start in found)


def _positions(model: SJEPA) -> str:
    shape = model.shape
    return f"{shape.max_frames} frames" if shape.predictor_positions == "learned" else shape.predictor_positions
