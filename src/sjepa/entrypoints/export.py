"""The command `exportw`."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

import torch

import sjepa
from sjepa.core.errors import UserError
from sjepa.core.files import printable, write_text
from sjepa.core.frames import FrameGeometry
from sjepa.core.model_hub import PREFIX, upload
from sjepa.core.onnx_files import OPSET, TOLERANCE, packages, session
from sjepa.entrypoints.evaluated import probes_of
from sjepa.reporting.console import Console
from sjepa.reporting.run_page import known_data, known_values, run_of_weights
from sjepa.s_jepa.export.card import MARK, model_card
from sjepa.s_jepa.export.onnx import WaveformToFeatures, write_int8, write_onnx
from sjepa.s_jepa.export.parity import Difference, compare
from sjepa.s_jepa.hubert import read_hubert, save_hubert
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from sjepa.s_jepa.ownership import origin, settled
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.weights import load_weights
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
        if config.hub is not None:
            raise UserError("hub: not available for a tokenizer")
        for name in ("quantize", "all_layers"):
            if getattr(config.export, name):
                raise UserError(f"export.{name}: not available for a tokenizer")
        return _export_codec(Path(config.init_weights), path, console)
    if config.hub is not None and not config.export.huggingface:
        raise UserError("hub: uploads the folder that export.huggingface writes")
    encoder, training = _encoder(config, overridden, console)
    model, shape = WaveformToFeatures(encoder, all_layers=config.export.all_layers), encoder.shape
    metadata = _metadata(config.init_weights, training, shape)
    write_onnx(model, path, metadata=metadata)
    difference = _checked(encoder, path)
    console.note(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset {OPSET}, {shape.num_layers} layers of width {shape.width}"
    )
    speed = f"{_TIMED_SECONDS} s of audio in {_seconds(path, shape.geometry):.3f} s"
    console.note(f"differs from the encoder by {difference.largest:.1e} at most; {speed}")
    if config.export.quantize == "int8":
        small = path.with_suffix(".int8.onnx")
        for_int8 = WaveformToFeatures(encoder, all_layers=config.export.all_layers, for_int8=True)
        write_int8(for_int8, small, metadata=metadata)
        _report_int8(encoder, path, small, console)
    if config.export.huggingface:
        _write_folder(path.parent / "hf", encoder, training, config, console)
    return 0


def _encoder(config: Config, overridden: Collection[str], console: Console) -> tuple[Encoder, str]:
    """The encoder of `init_weights` in evaluation mode, and what training it is from."""
    path = Path(str(config.init_weights))
    if path.is_dir():
        encoder, normalises = read_hubert(path)
        if normalises:
            raise UserError(
                f"init_weights: {path} takes normalised audio (do_normalize), which the ONNX file would not do"
            )
        return encoder.eval(), f"the folder {printable(path.name)}"
    weights = load_weights(path)
    console.note(settled(config, weights, overridden)[1])
    return weights.model.encoder.eval(), f"{weights.config['run_name']}, {origin(weights)}"


def _write_folder(folder: Path, encoder: Encoder, training: str, config: Config, console: Console) -> None:
    """The Hugging Face folder with its model card; uploads it if asked."""
    save_hubert(folder, encoder)
    path = Path(str(config.init_weights))
    run = None if path.is_dir() else run_of_weights(path)
    is_best = run is not None and (path.name == "best.pt" or not (run.weights / "best.pt").exists())  # as results.csv
    card = model_card(
        str(folder) if config.hub is None else config.hub.removeprefix(PREFIX),
        encoder.shape,
        sum(parameter.numel() for parameter in encoder.parameters()),
        training=training,
        own=not path.is_dir(),
        licence=config.export.licence,
        data=None if run is None else known_data(run),
        metrics=known_values(run) if run is not None and is_best else {},
        probes=[] if run is None else probes_of(run, weights=path, features=path.name),
    )
    readme = folder / "README.md"
    if readme.exists() and MARK not in readme.read_text(encoding="utf-8"):
        console.note(f"{readme} was edited and stays as it is")
    else:
        write_text(readme, card)
    is_hubert = encoder.shape.frontend == "waveform"
    loads = "HubertModel.from_pretrained" if is_hubert else "AutoModel.from_pretrained, with trust_remote_code=True,"
    console.note(f"{folder}: transformers' {loads} loads it; README.md is its model card")
    if config.hub is not None:
        console.note(f"uploaded to {upload(folder, config.hub, 'hub')}")


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


def _metadata(source: str, training: str, shape: EncoderShape) -> dict[str, str]:
    return {
        "producer": f"sjepa {sjepa.__version__}",
        "weights": printable(source),
        "training": training,
        "sample_rate": str(shape.geometry.sample_rate),
        "hop_samples": str(shape.geometry.hop_samples),
        "receptive_field_samples": str(shape.geometry.receptive_field_samples),
        "width": str(shape.width),
        "num_layers": str(shape.num_layers),
    }
