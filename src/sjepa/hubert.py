"""Hugging Face folders of HuBERT: their encoder is ours, to the names of its tensors. [Architecture Details]"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.modules.encoder import Encoder, EncoderShape

# Where a folder's configuration must say what our encoder is built like; left out, it means HuBERT Base.
_LAYOUT: dict[str, Any] = {
    "model_type": "hubert",
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "conv_bias": False,
    "do_stable_layer_norm": False,
    "feat_proj_layer_norm": True,
    "conv_kernel": list(SPEECH.kernels),
    "conv_stride": list(SPEECH.strides),
}
_BASE_SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_dim": [512] * len(SPEECH.kernels),
}
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_PREFIX = re.compile(r"^hubert\.")  # of models with a task head


def load_hubert(folder: Path, encoder: Encoder) -> None:
    """Gives `encoder` the weights of a HuBERT folder (config.json and model.safetensors).

    Raises UserError if a file is missing or damaged, or the model has another layout or size than `encoder`.
    """
    config = _read_config(folder / "config.json")
    wrong = [
        f"{name} {config[name]!r} where {value!r} is needed"
        for name, value in _LAYOUT.items()
        if name in config and config[name] != value
    ]
    wrong += _other_sizes(config, encoder.shape)
    if wrong:
        raise UserError(f"init_weights: {folder} holds an encoder of another shape ({'; '.join(wrong)})")
    own = encoder.state_dict()
    found = {_our_name(name): value for name, value in _read_tensors(folder / "model.safetensors").items()}
    missing = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"init_weights: {folder} lacks {len(missing)} tensors of the encoder or has them in other shapes "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''})"
        )
    encoder.load_state_dict({name: found[name].float() for name in own})


def _other_sizes(config: dict[str, Any], shape: EncoderShape) -> list[str]:
    layer = shape.transformer
    sizes = {
        "hidden_size": layer.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": layer.num_heads,
        "intermediate_size": layer.ffn_width,
        "num_conv_pos_embeddings": shape.position_kernel,
        "num_conv_pos_embedding_groups": shape.position_groups,
        "conv_dim": [shape.conv_channels] * len(SPEECH.kernels),
    }
    given = {name: config.get(name, _BASE_SIZES[name]) for name in sizes}
    return [
        f"{name} {given[name]} where model.size describes {value}"
        for name, value in sizes.items()
        if given[name] != value
    ]


def _our_name(name: str) -> str:
    name = _PREFIX.sub("", name)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_OLD_WEIGHT_NORM[last]}" if last in _OLD_WEIGHT_NORM else name


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"init_weights: {path.parent} holds no config.json; not a Hugging Face folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the configuration of a model")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"init_weights: {path.parent} holds no model.safetensors") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({' '.join(str(error).split())})") from None
