"""The model card of an exported folder: README.md with the metadata that the Hugging Face Hub
reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

import sjepa
from sjepa.core.frames import FrameGeometry
from sjepa.s_jepa.modules.encoder import EncoderShape


def model_card(
    name: str,
    shape: EncoderShape,
    parameters: int,
    *,
    training: str,
    licence: str | None,
    data: Mapping[str, Any] | None,
    metrics: Mapping[str, float],
) -> str:
    """The text. `training`: which run and phase the weights are from; `data`: data.json of the run;
    `metrics`: of the test set."""
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["speech", "self-supervised-learning", "s-jepa", "audio"],
    }
    if licence is not None:
        head = {"license": licence, **head}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n",
        f"A speech encoder trained without labels by [S-JEPA](https://arxiv.org/abs/2606.19398) with sjepa "
        f"{sjepa.__version__}: {parameters / 1e6:.1f} million parameters, {shape.num_layers} layers of width "
        f"{shape.width}, {_frontend(shape)}. {_rate(shape.geometry)}\n",
        f"## Use\n\n```python\n{_snippet(name, shape)}```\n",
        f"## Training\n\nWeights of {training}.{_hours(data)}\n",
    ]
    if metrics:
        rows = "\n".join(f"| {metric} | {value:.5g} |" for metric, value in metrics.items())
        parts.append(
            f"## Metrics\n\nOn the test set of the run, at masked frames.\n\n| metric | value |\n|---|---|\n{rows}\n"
        )
    if licence is None:
        parts.append("## Licence\n\nNot stated by the author (`export.licence`).\n")
    return "\n".join(parts)


def _frontend(shape: EncoderShape) -> str:
    return "HuBERT's convolutions" if shape.frontend == "waveform" else "log-mel frames"


def _rate(geometry: FrameGeometry) -> str:
    per_second = geometry.sample_rate / geometry.hop_samples
    return f"Input: float32 at {geometry.sample_rate:,} Hz, not normalised. Output: {per_second:g} vectors per second."


def _hours(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return ""
    return f" Training data: {data['train']['hours']:.2f} h in {data['train']['clips']:,} clips."


def _snippet(name: str, shape: EncoderShape) -> str:
    trusted = ", trust_remote_code=True" if shape.frontend == "logmel" else ""
    return (
        "import torch\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{name}"{trusted})\n'
        f"waveform = torch.zeros(1, {shape.geometry.sample_rate})  # a second at {shape.geometry.sample_rate:,} Hz\n"
        "features = model(waveform, attention_mask=torch.ones_like(waveform).long()).last_hidden_state\n"
    )
