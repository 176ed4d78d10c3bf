"""Consolidates DeepSpeed's checkpoint folders, and plain ones of the same layout, into one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sjepa.core.errors import UserError
from sjepa.core.torch_files import write_torch_file
from sjepa.tokenizer.consolidate import consolidate
from sjepa.tokenizer.weights import FORMAT, KIND

ENCODER_KIND = "sjepa tokenizer encoder alone"
_ENCODER = "encoder."
_GAUSSIANS = ("attention.offset", "attention.raw_width")
_OF_TRAINING = ("states", "parameters")


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder, under its own names."""
    return {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}


def convert(ds_dir: Path, out: Path, *, tag: str | None, encoder_only: bool, assert_gaatn: bool) -> str:
    """Writes one file: of our own folders weights that `evalsjepa` and later stages take, or the
    encoder alone. Returns what was written, as one line. Raises UserError; nothing is written
    then."""
    found = consolidate(ds_dir, tag)
    if assert_gaatn and not all(any(part in name for name in found.weights) for part in _GAUSSIANS):
        raise UserError(f"--assert_gaatn: {ds_dir / found.tag}: no weights of Gaussian adaptive attention")
    content = {"tag": found.tag, **{name: found.content[name] for name in found.content if name not in _OF_TRAINING}}
    weights = found.weights
    kind = KIND
    if encoder_only:
        kind = ENCODER_KIND
        weights = encoder_weights(weights)
        if not weights:
            raise UserError(f"--encoder_only: {ds_dir / found.tag}: no weights of an encoder")
        content = {name: value for name, value in content.items() if name != "targets"}
    write_torch_file(out, {"progress": {}, **content, "model": weights}, kind=kind, format_number=FORMAT)
    numbers = sum(value.numel() for value in weights.values())
    return f"{out}: {len(weights)} tensors, {numbers:,} numbers, from {found.tag}" + ", encoder only" * encoder_only
