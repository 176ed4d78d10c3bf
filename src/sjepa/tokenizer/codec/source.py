"""Where stage 2 finds the encoder of stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.torch_files import kind_of, read_torch_file
from sjepa.reporting.run_dir import existing_runs
from sjepa.tokenizer.codec.weights import KIND as CODEC_KIND
from sjepa.tokenizer.codec.weights import load_codec
from sjepa.tokenizer.consolidate import LATEST, consolidate
from sjepa.tokenizer.convert import ENCODER_KIND, encoder_weights
from sjepa.tokenizer.modules.encoder import TokenEncoder, TokenEncoderShape
from sjepa.tokenizer.shards import SHARDS
from sjepa.tokenizer.weights import FORMAT, KIND, load_weights


def find_encoder(given: str | None, folder: Path) -> Path:
    """The file or checkpoint folder: `given` or, without it, in `folder`, that of the run's name.
    Raises UserError, naming what was looked for, if there is none."""
    path = Path(given) if given else folder
    if path.is_file() or (path / LATEST).is_file():
        return path
    runs = [run.weights for run in reversed(existing_runs(path.parent, path.name, "train"))]
    for weights in (*runs, path / "weights"):
        for name in ("best.pt", "last.pt"):
            if kind_of(weights / name) == KIND:
                return weights / name
    if (path / SHARDS / LATEST).is_file():
        return path / SHARDS
    where = f"decoder.encoder: {path}" if given else f"decoder.encoder is not set, and {path}"
    raise UserError(f"{where}: holds no weights of stage 1 (train/weights/best.pt or {SHARDS}/{LATEST})")


def load_encoder(path: Path) -> TokenEncoder:
    """The encoder of a weights file of either stage, a file of ckpt2pt, or a folder of DeepSpeed's
    layout; every tensor must fit. Raises UserError."""
    if path.is_file() and kind_of(path) == CODEC_KIND:
        return load_codec(path).codec.encoder
    if path.is_file() and kind_of(path) != ENCODER_KIND:
        return load_weights(path).network.encoder
    content: dict[str, Any]
    if path.is_file():
        content = read_torch_file(path, kind=ENCODER_KIND, format_number=FORMAT)
        weights = content["model"]
    else:
        found = consolidate(path, None)
        content, weights = found.content, encoder_weights(found.weights)
    try:
        values = content["encoder"] if "encoder" in content else content["shape"]["encoder"]
        encoder = TokenEncoder(TokenEncoderShape.from_dict(values))
        encoder.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not an encoder of stage 1 ({' '.join(str(error).split())[:160]})") from None
    return encoder
