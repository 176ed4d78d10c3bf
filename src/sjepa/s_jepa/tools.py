"""Configuration sections for export, evaluation, probes and dumps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sjepa.config.values import USUAL_BASELINES, Baselines, Layers, Names, Paths, Section


class Export(Section):
    all_layers: bool = Field(
        False,
        description="exportw: add the outputs of all layers to the ONNX file.",
    )
    quantize: Literal["int8"] | None = Field(
        None, description="exportw: also write the ONNX file with 8-bit weights of its matrix products (*.int8.onnx)."
    )
    huggingface: bool = Field(True, description="exportw: also write a Hugging Face HuBERT folder (hf/) beside it.")
    licence: str | None = Field(
        None, description="exportw: licence of the weights for the model card, as the Hub names it (cc-by-4.0, mit)."
    )


class Evaluation(Section):
    labels: str | None = Field(
        None,
        description="evalsjepa: label table of the clips (.tsv, .csv or .jsonl with a column "
        "path); null: the fields of the manifest.",
    )
    align: bool = Field(
        False,
        description="evalsjepa: compute missing phone times by forced alignment (monophones on "
        "MFCC, trained on these clips only).",
    )
    figures: bool = Field(True, description="evalsjepa: draw entropy_hist.jpg, utterance.jpg, erank.jpg and others.")
    utterance: str | None = Field(
        None,
        description="Clip shown in utterance.jpg, by the end of its name; null: a short one, drawn by seed.",
    )


class Probe(Section):
    tasks: Names = Field(
        [],
        description="What evalsjepa probes for: columns of evaluation.labels with one value per clip (speaker, gender, …), "
        "frame_phones (needs times), abx (discriminability of triphones; needs times and speaker), phones and characters "
        "(recognition).",
    )
    layers: Layers = Field(
        [-1],
        description="Layers to probe, each separately; learned: a learned weighted sum of all layers.",
    )
    compare: Names = Field(
        [],
        description="Other encoders to probe: weights files and Hugging Face HuBERT folders.",
    )
    baselines: Baselines = Field(
        USUAL_BASELINES,
        description="Baselines to probe: true (mfcc, mfcc_clip, untrained), false, or a list of "
        "mfcc, mfcc_clip (per-clip mean and variance normalisation), mfcc_context (the same with 4 "
        "frames spliced on each side), logmel, logmel_clip, logmel_context, mixture (the target "
        "posteriors), untrained (random weights).",
    )
    train_path: Paths | None = Field(
        None,
        description="More labelled clips; recognition and frame_phones then train on these and test on test_path. null: "
        "random splits of test_path.",
    )
    splits: int = Field(3, ge=1, description="Random 80/20 splits.")
    apart: str | None = Field(
        None,
        description="Label (e.g. speaker) whose values are disjoint between training and test clips.",
    )
    max_clips: int = Field(
        2000,
        ge=2,
        description="Maximum number of clips to probe per set, drawn by seed.",
    )
    max_frames: int = Field(
        50000,
        ge=100,
        description="Frame probes: maximum number of training and of test frames, drawn by seed.",
    )
    steps: int = Field(
        1000,
        ge=1,
        description="Training updates of recognition heads, 16 clips each.",
    )
    beam: int = Field(1, ge=1, description="Beam width for decoding recognition heads; 1: greedy.")


class Dump(Section):
    path: Paths | None = Field(
        None,
        description="evalsjepa: data set whose units and frame posteriors are written to dump/; null: none.",
    )
    source: Literal["encoder", "targets"] = Field(
        "encoder",
        description="Posteriors to dump: encoder, predictions of the head on unmasked encoder "
        "output; targets, posteriors of the mixture.",
    )
    top_k: int = Field(3, ge=1, description="Number of components per frame to store.")
