"""Latency of the exported encoder (base, random weights, 10 s clip) in onnxruntime against the same
weights in `transformers.HubertModel`, float32; and the effect of chunked inference on a 60 s
recording."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import HubertModel

from benchmarks.table import Row, median_seconds, report
from benchmarks.train_step import machine_rates, operations
from sjepa.core.onnx_files import session
from sjepa.dataset.demo import write_corpus
from sjepa.inference import Model
from sjepa.s_jepa.export.onnx import WaveformToFeatures, write_int8, write_onnx
from sjepa.s_jepa.export.parity import compare
from sjepa.s_jepa.hubert import save_hubert
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape

SECONDS, RUNS = 10, 5
METADATA = {
    "sample_rate": "16000",
    "hop_samples": "320",
    "receptive_field_samples": "400",
    "width": "768",
    "num_layers": "6",
}


def chunk_cosine(folder: Path, model: Path) -> float:
    """Smallest cosine similarity between frames of full and chunked (10 s) inference, on one minute
    of generated speech."""
    write_corpus(folder, speakers=4, clips=12)
    with zipfile.ZipFile(folder / "train.zip") as archive:
        clips = [soundfile.read(archive.open(name), dtype="float32")[0] for name in archive.namelist()]
    soundfile.write(folder / "minute.wav", np.concatenate(clips)[: 60 * 16000], 16000)
    whole, chunks = (Model(model).file(folder / "minute.wav", chunk_seconds=seconds) for seconds in (100, 10))
    cosine = (whole * chunks).sum(-1) / np.linalg.norm(whole, axis=-1) / np.linalg.norm(chunks, axis=-1)
    figures = f"cosine {cosine.mean():.4f} on average, {cosine.min():.4f} at least"
    print(f"{len(whole) / 50:.0f} s in chunks of 10 s against one pass: {figures}")
    return float(cosine.min())


def measure() -> list[Row]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape()).eval()
    waveform = 0.1 * torch.randn(1, SECONDS * 16000)
    inputs = {"waveform": waveform.numpy(), "lengths": np.array([waveform.shape[1]])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported, small = folder / "encoder.onnx", folder / "int8.onnx"
        model = WaveformToFeatures(encoder, all_layers=False)
        write_onnx(model, exported, metadata=METADATA)
        write_int8(WaveformToFeatures(encoder, all_layers=False, for_int8=True), small, metadata=METADATA)
        save_hubert(folder / "hf", encoder)
        hubert = HubertModel.from_pretrained(folder / "hf", attn_implementation="sdpa").eval()

        def theirs() -> None:
            with torch.no_grad():
                hubert(waveform)

        theirs()
        counted, rate = operations(theirs), machine_rates("cpu").fp32
        baseline, times = median_seconds(theirs, RUNS), {}
        for path in (exported, small):
            runtime = session(path, threads=2)
            runtime.run(None, inputs)
            times[path] = median_seconds(lambda runtime=runtime: runtime.run(None, inputs), RUNS)
        cosine, size = compare(encoder, small).cosine, small.stat().st_size / exported.stat().st_size
        print(f"int8: cosine to float32 at least {cosine:.4f}; {size:.2f} of the size")
        chunk_cosine(folder, exported)
    reached = counted / times[exported]
    print(f"float32: {counted / 1e9:.0f} GFLOP at {reached / 1e9:.0f} GFLOP/s, the machine's rate is {rate / 1e9:.0f}")
    return [
        Row.speedup("onnx_fp32", times[exported], baseline, 1.2),
        Row("onnx_fp32_rate", reached, rate, reached / rate, 0.85, reached / rate >= 0.85),
        Row.speedup("onnx_int8", times[small], baseline, 1.8),
    ]


if __name__ == "__main__":
    report(measure, __doc__)
