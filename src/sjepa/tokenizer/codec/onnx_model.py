"""A codec, or half of one, from an ONNX file: needs onnxruntime, not torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sjepa.core.errors import UserError
from sjepa.core.onnx_files import session
from sjepa.core.threads import usable_cores
from sjepa.dataset.audio import Waveform
from sjepa.tokenizer.codec.tokens import Ints, TokenModel


def load_onnx_model(path: Path) -> TokenModel:
    """The model of one of the files of `exportw`, which encodes or decodes. Raises UserError."""
    runtime = session(path, threads=usable_cores())
    found = runtime.get_modelmeta().custom_metadata_map
    outputs = {output.name for output in runtime.get_outputs()}
    if "identity" not in found or not outputs & {"tokens", "waveform"}:
        raise UserError(f"{path}: not a file of the tokenizer (exportw writes them from weights of stage 2)")
    encodes = "tokens" in outputs

    def encode(waveform_S: Waveform) -> Ints:
        if not encodes:
            raise UserError(f"{path}: this file decodes; name the one that encodes (*_encoder.onnx)")
        given = {"waveform": waveform_S[None], "lengths": np.array([len(waveform_S)])}
        return runtime.run(["tokens"], given)[0][0]  # type: ignore[no-any-return]

    def decode(tokens_TG: Ints, samples: int) -> Waveform:
        if encodes:
            raise UserError(f"{path}: this file encodes; name the one that decodes (*_decoder.onnx)")
        given = {"tokens": tokens_TG[None], "lengths": np.array([samples])}
        return runtime.run(["waveform"], given)[0][0, :samples]  # type: ignore[no-any-return]

    return TokenModel(
        found["identity"],
        found["description"],
        int(found["sample_rate"]),
        int(found["hop_samples"]),
        tuple(int(size) for size in found["vocabulary"].split()),
        int(found["reach_frames"]),
        encode,
        decode,
    )
