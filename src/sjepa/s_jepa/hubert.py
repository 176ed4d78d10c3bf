"""Reads and writes Hugging Face HuBERT folders: same architecture and tensor names as our encoder.
[Architecture Details]"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path, write_text
from sjepa.core.frames import SPEECH, FrameGeometry
from sjepa.features.mel_frontend import (
    LEAST_DEVIATION,
    NUM_BANDS,
    POWER_FLOOR,
    STEPS,
    MelFrontend,
    MelStatistics,
    fft_samples,
    window_samples,
)
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape


# Required values in a folder's config.json; a missing key means the default of HuBERT Base.
def _layout(geometry: FrameGeometry) -> dict[str, Any]:
    return {
        "model_type": "hubert",
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "conv_bias": False,
        "do_stable_layer_norm": False,
        "feat_proj_layer_norm": True,
        "layer_norm_eps": 1e-5,
        "conv_kernel": list(geometry.kernels),
        "conv_stride": list(geometry.strides),
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
_DIVIDE_WIDTH = ("num_attention_heads", "num_conv_pos_embedding_groups")
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_MEL_TYPE = "sjepa"
_MODELLING = Path(__file__).with_name("modeling_sjepa.py")
_TENSORS = "model.safetensors"
_CONVERT = (
    ", and pytorch_model.bin is not read, as it may run code; transformers converts it: "
    "HubertModel.from_pretrained(folder).save_pretrained(folder)"
)
_PREFIX = re.compile(r"^hubert\.")  # of models with a task head


def _mel_layout(geometry: FrameGeometry) -> dict[str, Any]:
    return {
        "model_type": _MEL_TYPE,
        "feat_proj_layer_norm": False,
        "mel_bands": NUM_BANDS,
        "mel_window": window_samples(geometry),
        "mel_hop": geometry.hop_samples // STEPS,
        "mel_fft": fft_samples(geometry),
        "mel_power_floor": POWER_FLOOR,
        "mel_least_deviation": LEAST_DEVIATION,
    }


def load_hubert(folder: Path, encoder: Encoder) -> None:
    """Loads the weights of a HuBERT folder (config.json and model.safetensors) into `encoder`.

    Raises UserError if a file is missing or damaged, or architecture or size differ from `encoder`.
    """
    config = _read_config(folder / "config.json")
    if _frontend(config) != encoder.shape.frontend:
        raise UserError(f"init_weights: {folder} needs model.frontend: {_frontend(config)}")
    wrong = _other_layout(config, encoder.geometry) + _other_sizes(config, encoder.shape)
    if wrong:
        raise UserError(f"init_weights: {folder} holds an encoder of another shape ({'; '.join(wrong)})")
    own = encoder.state_dict()
    found = {_our_name(name): value for name, value in _read_tensors(folder).items()}
    missing = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"{folder}: lacks {len(missing)} tensors of the encoder or has them in other shapes "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''})"
        )
    encoder.load_state_dict({name: found[name].float() for name in own})


def read_hubert(folder: Path) -> tuple[Encoder, bool]:
    """The encoder of a HuBERT folder of any size, and whether its input must be normalised to zero
    mean and unit variance (`do_normalize` of preprocessor_config.json; default: no).

    Raises UserError if a file is missing or damaged, or the architecture is not that of HuBERT
    Base.
    """
    config = _read_config(folder / "config.json")
    sizes = {name: config.get(name, value) for name, value in _BASE_SIZES.items()}
    wrong = _other_layout(config, SPEECH)
    channels, is_mel = sizes.pop("conv_dim"), _frontend(config) == "logmel"
    if not isinstance(channels, list) or len({*channels}) != 1 or len(channels) != len(SPEECH.kernels):
        wrong.append(f"conv_dim {channels!r}, not one number of channels in {len(SPEECH.kernels)} layers")
    wrong += [f"{name} {value!r}" for name, value in sizes.items() if not isinstance(value, int) or value < 1]
    if not wrong and any(sizes["hidden_size"] % sizes[name] for name in _DIVIDE_WIDTH):
        wrong.append(f"hidden_size {sizes['hidden_size']}, which {' or '.join(_DIVIDE_WIDTH)} does not divide")
    if wrong:
        raise UserError(f"{folder}: not an encoder that can be read ({'; '.join(wrong)})")
    layer = TransformerShape(sizes["hidden_size"], sizes["num_attention_heads"], sizes["intermediate_size"])
    shape = EncoderShape(
        channels[0],
        sizes["num_hidden_layers"],
        layer,
        sizes["num_conv_pos_embeddings"],
        sizes["num_conv_pos_embedding_groups"],
    )
    if is_mel:
        shape = replace(shape, frontend="logmel", mel_statistics=config["mel_statistics"])
    encoder = Encoder(shape)
    load_hubert(folder, encoder)
    extractor = folder / "preprocessor_config.json"
    return encoder, extractor.exists() and _read_config(extractor).get("do_normalize") is True


def save_hubert(folder: Path, encoder: Encoder) -> None:
    """Writes `encoder` as a folder for `transformers.HubertModel` and `AutoFeatureExtractor`:
    config.json, model.safetensors, preprocessor_config.json. Input is not normalised, as in
    training. With a log-mel frontend `modeling_sjepa.py` is included, and `AutoModel` loads the
    folder with `trust_remote_code=True`."""
    shape, layer = encoder.shape, encoder.shape.transformer
    config = {
        **_layout(shape.geometry),
        **_sizes(shape),
        "architectures": ["HubertModel"],
        "num_feat_extract_layers": len(shape.geometry.kernels),
        "hidden_dropout": layer.dropout,
        "attention_dropout": layer.attention_dropout,
        "activation_dropout": layer.activation_dropout,
        "feat_proj_dropout": layer.dropout,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,  # may be raised for fine-tuning; no mask embedding is saved
        "mask_feature_prob": 0.0,
        "torch_dtype": "float32",
    }
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": shape.geometry.sample_rate,
        "do_normalize": False,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    if shape.frontend == "logmel":
        config |= _mel_config(encoder)
        tensors |= _mel_tensors(encoder.feature_extractor)
        write_text(folder / _MODELLING.name, _MODELLING.read_text(encoding="utf-8"))
    else:
        (folder / _MODELLING.name).unlink(missing_ok=True)  # of an earlier export
    with atomic_path(folder / _TENSORS) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    write_text(folder / "preprocessor_config.json", json.dumps(extractor, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _mel_config(encoder: Encoder) -> dict[str, Any]:
    """Config keys of a log-mel encoder that differ from HuBERT's; read by `modeling_sjepa.py`."""
    frontend, module = encoder.feature_extractor, _MODELLING.stem
    return {
        **_mel_layout(encoder.geometry),
        "architectures": ["SJEPAModel"],
        "auto_map": {
            "AutoConfig": f"{module}.SJEPAConfig",
            "AutoModel": f"{module}.SJEPAModel",
            "AutoModelForCTC": f"{module}.SJEPAForCTC",
        },
        "custom_pipelines": {"feature-extraction": {"impl": f"{module}.SJEPAFeatures", "pt": ["AutoModel"]}},
        "feat_extract_norm": "mel",  # so that HubertModel refuses the folder
        "conv_dim": [frontend.num_channels] * len(encoder.geometry.kernels),  # the last is used
        "mel_statistics": encoder.shape.mel_statistics,
    }


def _mel_tensors(frontend: MelFrontend) -> dict[str, Tensor]:
    return {
        "feature_extractor.window": frontend.window.cpu(),
        "feature_extractor.mel_FM": frontend.mel_FM.cpu().contiguous(),
    }


def _frontend(config: dict[str, Any]) -> str:
    """The frontend type of a folder: waveform or logmel."""
    return "logmel" if config.get("model_type") == _MEL_TYPE else "waveform"


def _other_layout(config: dict[str, Any], geometry: FrameGeometry) -> list[str]:
    wanted = _layout(geometry)
    if _frontend(config) == "logmel":
        wanted |= _mel_layout(geometry)
        del wanted["feat_extract_norm"]
        if config.get("mel_statistics") not in get_args(MelStatistics):
            return [f"mel_statistics {config.get('mel_statistics')!r}, not one of {', '.join(get_args(MelStatistics))}"]
    return [
        f"{name} {config[name]!r} where {value!r} is needed"
        for name, value in wanted.items()
        if name in config and config[name] != value
    ]


def _other_sizes(config: dict[str, Any], shape: EncoderShape) -> list[str]:
    sizes = _sizes(shape)
    if shape.frontend == "logmel":
        del sizes["conv_dim"]  # it has no convolutions
    given = {name: config.get(name, _BASE_SIZES[name]) for name in sizes}
    return [
        f"{name} {given[name]} where model.size describes {value}"
        for name, value in sizes.items()
        if given[name] != value
    ]


def _sizes(shape: EncoderShape) -> dict[str, Any]:
    layer = shape.transformer
    return {
        "hidden_size": layer.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": layer.num_heads,
        "intermediate_size": layer.ffn_width,
        "num_conv_pos_embeddings": shape.position_kernel,
        "num_conv_pos_embedding_groups": shape.position_groups,
        "conv_dim": [shape.conv_channels] * len(shape.geometry.kernels),
    }


def _our_name(name: str) -> str:
    name = _PREFIX.sub("", name)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_OLD_WEIGHT_NORM[last]}" if last in _OLD_WEIGHT_NORM else name


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: holds no {path.name}; not a Hugging Face folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the configuration of a model")
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of the shards listed in its index."""
    path, index = folder / _TENSORS, folder / f"{_TENSORS}.index.json"
    if path.exists() or not index.exists():
        return _read_part(path)
    parts = _read_config(index).get("weight_map")
    if not isinstance(parts, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in parts.values()
    ):
        raise UserError(f"{index}: weight_map does not map tensors to file names")
    return {name: value for part in sorted(set(parts.values())) for name, value in _read_part(folder / part).items()}


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        pickled = (path.parent / "pytorch_model.bin").exists()
        raise UserError(f"{path.parent}: holds no {path.name}{_CONVERT if pickled else ''}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({' '.join(str(error).split())})") from None
