"""best.pt and last.pt of stage 2: encoder, quantiser and decoder in one self-contained file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.torch_files import kind_of, read_torch_file, write_torch_file
from sjepa.tokenizer.codec.fsq import FSQ
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.modules.decoder import DecoderShape
from sjepa.tokenizer.modules.encoder import TokenEncoder, TokenEncoderShape
from sjepa.tokenizer.weights import KIND as ENCODER_KIND

KIND, FORMAT = "sjepa tokenizer", 1


@dataclass(frozen=True)
class CodecWeights:
    """Content of a file: the codec, configuration (plain values) and progress (epoch, step,
    validation metrics)."""

    codec: Codec
    config: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)


def save_codec(path: Path, weights: CodecWeights) -> None:
    """Writes the file atomically."""
    content = {
        **codec_shapes(weights.codec),
        "model": weights.codec.state_dict(),
        "config": weights.config,
        "progress": weights.progress,
    }
    write_torch_file(path, content, kind=KIND, format_number=FORMAT)


def codec_shapes(codec: Codec) -> dict[str, Any]:
    """The sizes of its parts, as plain values."""
    quantiser = {"levels": codec.fsq.levels, "group": codec.fsq.group}
    return {"encoder": asdict(codec.encoder.shape), "decoder": asdict(codec.decoder.shape), "quantiser": quantiser}


def load_codec(path: Path) -> CodecWeights:
    """Loads a file of `save_codec` onto the CPU. Raises UserError if it is missing, damaged, or not
    such a file."""
    if kind_of(path) == ENCODER_KIND:
        raise UserError(f"{path}: weights of stage 1, the encoder; name those of stage 2 (best.pt of train_decoder)")
    content = read_torch_file(path, kind=KIND, format_number=FORMAT)
    try:
        encoder = TokenEncoder(TokenEncoderShape.from_dict(content["encoder"]))
        quantiser = content["quantiser"]
        fsq = FSQ(encoder.shape.width, tuple(quantiser["levels"]), quantiser["group"])
        codec = Codec(encoder, fsq, DecoderShape(**content["decoder"]))
        codec.load_state_dict(content["model"])
        return CodecWeights(codec, dict(content["config"]), dict(content["progress"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: incomplete weights ({' '.join(str(error).split())})") from None
