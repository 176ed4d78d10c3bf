"""The model card of an exported folder: README.md with the metadata that the Hugging Face Hub
reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import sjepa
from sjepa.core.frames import FrameGeometry
from sjepa.evaluation.scores import ProbeRow
from sjepa.s_jepa.modules.encoder import EncoderShape

_ORIGIN = {
    True: "A speech encoder trained without labels by [S-JEPA](https://arxiv.org/abs/2606.19398) with sjepa",
    False: "A speech encoder, converted from a Hugging Face folder by sjepa",
}

MARK = "<!-- exportw replaces this file as long as this line is in it -->"


def model_card(
    name: str,
    shape: EncoderShape,
    parameters: int,
    *,
    training: str,
    own: bool,
    licence: str | None,
    data: Mapping[str, Any] | None,
    metrics: Mapping[str, float],
    probes: Sequence[ProbeRow],
) -> str:
    """The text. `training`: which run and phase the weights are from; `own`: whether sjepa trained
    them; `data`: data.json of the run; `metrics`: of these weights on its test set."""
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
        f"{_ORIGIN[own]} {sjepa.__version__}: {parameters / 1e6:.1f} million parameters, {shape.num_layers} layers of width "
        f"{shape.width}, {_frontend(shape)}. {_rate(shape.geometry)}\n",
        f"## Use\n\n```python\n{_snippet(name, shape)}```\n",
        f"## Training\n\nWeights of {training}.{_data(data)}\n",
    ]
    if metrics:
        rows = "\n".join(f"| {metric} | {value:.5g} |" for metric, value in metrics.items())
        parts.append(
            f"## Metrics\n\nOn the test set of the run, at masked frames.\n\n| metric | value |\n|---|---|\n{rows}\n"
        )
    if probes:
        parts.append(f"## Probes\n\n{_probes(probes)}\n")
    if licence is None:
        parts.append("## Licence\n\nNot stated by the author (`export.licence`).\n")
    return "\n".join([*parts, f"{MARK}\n"])


def _frontend(shape: EncoderShape) -> str:
    return "HuBERT's convolutions" if shape.frontend == "waveform" else "log-mel frames"


def _rate(geometry: FrameGeometry) -> str:
    per_second = geometry.sample_rate / geometry.hop_samples
    return f"Input: float32 at {geometry.sample_rate:,} Hz, not normalised. Output: {per_second:g} vectors per second."


def _data(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return ""
    train, test = data["train"], data["test"]
    return (
        f" Training data: {train['hours']:.2f} h in {train['clips']:,} clips of {train['shortest_seconds']:.1f} to "
        f"{train['longest_seconds']:.1f} s (median {train['median_seconds']:.1f} s). Test set: {test['hours']:.2f} h in "
        f"{test['clips']:,} clips."
    )


def _probes(rows: Sequence[ProbeRow]) -> str:
    """Results of probes on frozen features, beside the baselines."""
    lines = []
    for row in rows:
        interval = "" if math.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        lines.append(
            f"| {row.task} | {row.probe} | {row.metric} | {row.features} | {row.layer} | {row.mean:.3f} | {interval} |"
        )
    head = "| task | probe | metric | features | layer | result | 95 % interval |\n|---|---|---|---|---|---|---|\n"
    return "Linear or other simple probes on frozen features.\n\n" + head + "\n".join(lines)


def _snippet(name: str, shape: EncoderShape) -> str:
    trusted = ", trust_remote_code=True" if shape.frontend == "logmel" else ""
    return (
        "import torch\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{name}"{trusted})\n'
        f"waveform = torch.zeros(1, {shape.geometry.sample_rate})  # a second at {shape.geometry.sample_rate:,} Hz\n"
        "features = model(waveform, attention_mask=torch.ones_like(waveform).long()).last_hidden_state\n"
    )
