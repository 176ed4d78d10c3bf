"""Consolidates DeepSpeed's checkpoint folders, and plain ones of the same layout, into one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.torch_files import write_torch_file
from sjepa.tokenizer.codec.weights import FORMAT as CODEC_FORMAT
from sjepa.tokenizer.codec.weights import KIND as CODEC_KIND
from sjepa.tokenizer.consolidate import Consolidated, consolidate
from sjepa.tokenizer.weights import FORMAT, KIND

ENCODER_KIND = "sjepa tokenizer encoder alone"
_ENCODER, _DECODER = "encoder.", "decoder."
_GAUSSIANS = ("attention.offset", "attention.raw_width")
_OF_TRAINING = ("states", "parameters")
_FROZEN = ("encoder", "whitening")  # states of stage 2 that are no part of what is trained


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder, under its own names."""
    return {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}


def convert(ds_dir: Path, out: Path, *, tag: str | None, encoder_only: bool, assert_gaatn: bool) -> str:
    """Writes one file: of our own folders weights that later stages and commands take, or the
    encoder alone. Returns what was written, as one line. Raises UserError; nothing is written
    then."""
    found = consolidate(ds_dir, tag)
    is_codec = "quantiser" in found.content
    weights = _codec_weights(found) if is_codec else found.weights
    if assert_gaatn and not all(any(part in name for name in weights) for part in _GAUSSIANS):
        raise UserError(f"--assert_gaatn: {ds_dir / found.tag}: no weights of Gaussian adaptive attention")
    content = {"tag": found.tag, **{name: found.content[name] for name in found.content if name not in _OF_TRAINING}}
    kind, number = (CODEC_KIND, CODEC_FORMAT) if is_codec else (KIND, FORMAT)
    if encoder_only:
        kind, number, weights = ENCODER_KIND, FORMAT, encoder_weights(weights)
        if not weights:
            raise UserError(f"--encoder_only: {ds_dir / found.tag}: no weights of an encoder")
    elif "targets" in _states(found):
        content["targets"] = _states(found)["targets"]
    write_torch_file(out, {"progress": {}, **content, "model": weights}, kind=kind, format_number=number)
    numbers = sum(value.numel() for value in weights.values())
    return f"{out}: {len(weights)} tensors, {numbers:,} numbers, from {found.tag}" + ", encoder only" * encoder_only


def _states(found: Consolidated) -> dict[str, Any]:
    states = found.content.get("states")
    return states if isinstance(states, dict) else {}


def _codec_weights(found: Consolidated) -> dict[str, Tensor]:
    """All of a codec, of which perhaps the decoder alone was trained."""
    if any(name.startswith(_DECODER) for name in found.weights):
        return found.weights
    frozen = {f"{part}.{name}": value for part in _FROZEN for name, value in _states(found).get(part, {}).items()}
    return {**frozen, **{_DECODER + name: value for name, value in found.weights.items()}}
