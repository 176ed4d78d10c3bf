"""The command `exportw`."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

import torch

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import printable
from sjepa.core.frames import FrameGeometry
from sjepa.core.onnx_files import OPSET, TOLERANCE, packages, session
from sjepa.reporting.console import Console
from sjepa.s_jepa.export.onnx import WaveformToFeatures, write_int8, write_onnx
from sjepa.s_jepa.export.parity import Difference, compare
from sjepa.s_jepa.hubert import save_hubert
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.ownership import origin, settled
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.weights import Weights, load_weights
from sjepa.tokenizer.codec.onnx import write_codec
from sjepa.tokenizer.codec.weights import load_codec
from sjepa.tokenizer.extractor import is_codec

_LEAST_COSINE = 0.99
_TIMED_SECONDS = 10


def export_encoder(config: Config, *, overridden: Collection[str] = ()) -> int:
    """Exports the encoder of `init_weights` to `onnx_path`, and next to it the further formats
    set in `export`. A file whose output differs from the encoder's by more than TOLERANCE is
    deleted. `overridden`: keys set on the command line. Returns the exit code."""
    if config.init_weights is None:
        raise UserError("init_weights: name the weights to export (best.pt of a run)")
    packages()
    path = Path(config.onnx_path)
    if path.suffix != ".onnx":
        raise UserError(f"onnx_path: {path} does not end in .onnx")
    console = Console()
    if is_codec(Path(config.init_weights)):
        for name in ("quantize", "all_layers"):
            if getattr(config.export, name):
                raise UserError(f"export.{name}: not available for a tokenizer")
        return _export_codec(Path(config.init_weights), path, console)
    weights = load_weights(config.init_weights)
    _, said = settled(config, weights, overridden)
    weights.model.eval()
    model = WaveformToFeatures(weights.model.encoder, all_layers=config.export.all_layers)
    console.note(said)
    metadata = _metadata(config.init_weights, weights)
    write_onnx(model, path, metadata=metadata)
    difference = _checked(weights.model.encoder, path)
    shape = weights.model.shape.encoder
    console.note(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset {OPSET}, {shape.num_layers} layers of width {shape.width}"
    )
    speed = f"{_TIMED_SECONDS} s of audio in {_seconds(path, shape.geometry):.3f} s"
    console.note(f"differs from the encoder by {difference.largest:.1e} at most; {speed}")
    if config.export.quantize == "int8":
        small = path.with_suffix(".int8.onnx")
        for_int8 = WaveformToFeatures(weights.model.encoder, all_layers=config.export.all_layers, for_int8=True)
        write_int8(for_int8, small, metadata=metadata)
        _report_int8(weights.model.encoder, path, small, console)
    if config.export.huggingface:
        folder = path.parent / "hf"
        save_hubert(folder, weights.model.encoder)
        is_hubert = weights.model.encoder.shape.frontend == "waveform"
        loads = (
            "HubertModel.from_pretrained" if is_hubert else "AutoModel.from_pretrained, with trust_remote_code=True,"
        )
        console.note(f"{folder}: transformers' {loads} loads it")
    return 0


def _export_codec(source: Path, path: Path, console: Console) -> int:
    """Both halves of a tokenizer: NAME_encoder.onnx and NAME_decoder.onnx."""
    halves = [path.with_name(f"{path.stem}_{half}.onnx") for half in ("encoder", "decoder")]
    weights = load_codec(source)
    metadata = {"weights": printable(str(source)), "training": str(weights.config["run_name"])}
    parity = write_codec(weights.codec, *halves, metadata=metadata)
    for half in halves:
        console.note(f"{half}: {half.stat().st_size / 1e6:.1f} MB, opset {OPSET}")
    console.note(
        f"{parity.tokens:.2%} of the tokens differ from the codec's, audio by {parity.audio:.1e} at most; runtok takes both"
    )
    return 0


def _checked(encoder: Encoder, path: Path) -> Difference:
    difference = compare(encoder, path)
    if not difference.largest <= TOLERANCE:
        path.unlink()
        raise UserError(
            f"{path}: removed, since it differs from the encoder by {difference.largest:.1e} ({difference.where}), more "
            f"than {TOLERANCE:.0e}; another version of torch, onnx or onnxruntime may do better"
        )
    return difference


def _report_int8(encoder: Encoder, source: Path, path: Path, console: Console) -> None:
    difference = compare(encoder, path)
    if not difference.cosine >= _LEAST_COSINE:
        console.warn(f"{path}: the cosine to float32 is as low as {difference.cosine:.4f} in some frame")
    before, after = (_seconds(file, encoder.geometry) for file in (source, path))
    console.note(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {before / after:.2f} times as fast, cosine to float32 at least "
        f"{difference.cosine:.4f}"
    )


def _seconds(path: Path, geometry: FrameGeometry) -> float:
    """Run time for a 10 s clip: the best of three runs, in seconds."""
    runtime = session(path, threads=torch.get_num_threads())
    waveform = torch.zeros(1, _TIMED_SECONDS * geometry.sample_rate).normal_().numpy() * 0.1
    inputs = {"waveform": waveform, "lengths": torch.tensor([waveform.shape[1]]).numpy()}
    times = []
    for _ in range(4):
        started = time.perf_counter()
        runtime.run(None, inputs)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _metadata(source: str, weights: Weights) -> dict[str, str]:
    shape = weights.model.shape.encoder
    return {
        "producer": f"sjepa {sjepa.__version__}",
        "weights": printable(source),
        "training": f"{weights.config['run_name']}, {origin(weights)}",
        "sample_rate": str(shape.geometry.sample_rate),
        "hop_samples": str(shape.geometry.hop_samples),
        "receptive_field_samples": str(shape.geometry.receptive_field_samples),
        "width": str(shape.width),
        "num_layers": str(shape.num_layers),
    }
