"""ONNX files: export of a module, sessions. Requires the optional ONNX packages."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path

OPSET = 20  # the first with a Gelu operator
TOLERANCE = 1e-4  # largest absolute difference of a file's outputs from the module's


def packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime. Raises UserError if not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it)
    except ImportError as error:
        raise UserError(f"exportw needs the package {error.name}: pip install 'sjepa[onnx]'") from None
    onnxruntime.set_default_logger_severity(3)
    return onnx, onnxruntime


def write_module(
    module: Any,
    inputs: Mapping[str, Any],
    path: Path,
    *,
    dynamic: Mapping[str, Mapping[int, Any]],
    outputs: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str],
) -> None:
    """Writes the file atomically. `inputs`: examples, in order, with their `dynamic` dimensions
    (torch.export.Dim); `outputs`: names, in order, and those of dimensions; `metadata` becomes its
    metadata_props."""
    import torch

    onnx, _ = packages()
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes={name: dict(dynamic[name]) for name in inputs},
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto  # type: ignore[union-attr]
    for output in proto.graph.output:  # the exporter writes expressions
        for place, name in outputs[output.name].items():
            output.type.tensor_type.shape.dim[place].dim_param = name
    for name, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    with atomic_path(path) as temporary:
        onnx.save(proto, str(temporary))


def session(path: Path, *, threads: int) -> Any:
    """An onnxruntime session of the file, on the CPU. Raises UserError if onnxruntime is not
    installed or the file is missing or damaged."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: needs the package onnxruntime: pip install onnxruntime") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own
        raise UserError(f"{path}: not an ONNX file, or damaged ({' '.join(str(error).split())[:120]})") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses log messages and warnings of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
