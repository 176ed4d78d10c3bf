"""Numerical comparison of an exported file with the encoder. B batch, S samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjepa.core.frames import FrameGeometry
from sjepa.core.onnx_files import session
from sjepa.core.random import generator
from sjepa.s_jepa.modules.encoder import Encoder

BATCHES = (1, 2, 5)
SECONDS = (0.0, 0.4, 3.7, 30.0)  # 0: a single frame


class Difference(NamedTuple):
    """Largest absolute difference of features, smallest cosine similarity of frames, and the case
    of the former."""

    largest: float
    cosine: float
    where: str


def cases(geometry: FrameGeometry) -> Iterator[tuple[Tensor, Tensor]]:
    """Test cases: waveforms [B, S] and lengths [B]. The first clip of a batch has full length, the
    others are padded with loud noise, which must not affect the features."""
    for batch in BATCHES:
        for seconds in SECONDS:
            samples = max(geometry.samples(1), round(seconds * geometry.sample_rate))
            rng = generator("parity", batch, samples)
            lengths = np.maximum(geometry.samples(1), samples - np.arange(batch) * samples // 7)
            waveform = 0.1 * rng.standard_normal((batch, samples))
            waveform[np.arange(samples) >= lengths[:, None]] *= 10
            yield torch.from_numpy(waveform.astype(np.float32)), torch.from_numpy(lengths)


@torch.no_grad()
def compare(encoder: Encoder, path: Path) -> Difference:
    """Compares the file with the PyTorch encoder on all cases. A wrong number of frames counts as
    an infinite difference."""
    runtime = session(path, threads=torch.get_num_threads())
    found = Difference(0.0, 1.0, "")
    for waveform, lengths in cases(encoder.geometry):
        got = runtime.run(None, {"waveform": waveform.numpy(), "lengths": lengths.numpy()})
        expected = _expected(encoder, waveform, lengths)[: len(got)]
        where = f"{len(lengths)} × {waveform.shape[1] / encoder.geometry.sample_rate:g} s"
        if any(a.shape != b.shape for a, b in zip(expected, got, strict=True)) or (expected[1] != got[1]).any():
            return Difference(float("inf"), -1.0, where)
        largest = max(float(np.abs(expected[index] - got[index]).max()) for index in (0, *range(2, len(got))))
        real = np.arange(expected[0].shape[1]) < expected[1][:, None]
        cosine = float(_cosine(expected[0][real], got[0][real]).min())
        found = Difference(
            max(found.largest, largest), min(found.cosine, cosine), where if largest > found.largest else found.where
        )
    return found


def _expected(encoder: Encoder, waveform: Tensor, lengths: Tensor) -> list[Any]:
    """Expected outputs: features, their lengths, all layers."""
    output = encoder(waveform, lengths)
    real_BT1 = output.real_BT[..., None]
    layers = torch.stack(output.layers, dim=1) * real_BT1[:, None]
    return [values.numpy() for values in (output.features_BTD * real_BT1, output.real_BT.sum(1), layers)]


def _cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
