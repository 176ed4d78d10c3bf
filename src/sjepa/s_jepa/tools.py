"""The sections of the commands beside training: export, evaluation, probes, dumps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sjepa.config.values import USUAL_BASELINES, Baselines, Layers, Names, Paths, Section


class Export(Section):
    all_layers: bool = Field(False, description="exportw: the ONNX file also gives the outputs of all layers.")
    quantize: Literal["int8"] | None = Field(
        None, description="exportw: also write the ONNX file with 8-bit weights of its matrix products (*.int8.onnx)."
    )
    huggingface: bool = Field(True, description="exportw: also write a Hugging Face HuBERT folder (hf/) beside it.")


class Evaluation(Section):
    labels: str | None = Field(
        None,
        description="evalsjepa: table of the clips' labels (.tsv, .csv or .jsonl with a column path); null: the fields that "
        "a manifest gives.",
    )
    align: bool = Field(
        False,
        description="evalsjepa: find the times of phones that the labels give without times, by a forced alignment "
        "(monophones on MFCC, trained on these clips alone).",
    )
    figures: bool = Field(True, description="evalsjepa: draw entropy_hist.jpg, utterance.jpg, erank.jpg and others.")
    utterance: str | None = Field(
        None, description="Clip that utterance.jpg shows, by the end of its name; null: a short one, drawn by seed."
    )


class Probe(Section):
    tasks: Names = Field(
        [],
        description="What evalsjepa probes for: columns of evaluation.labels with one value per clip (speaker, gender, …), "
        "frame_phones (needs times), abx (discriminability of triphones; needs times and speaker), phones and characters "
        "(recognition).",
    )
    layers: Layers = Field(
        [-1], description="Layers to probe, each for itself; learned: a trained weighting of all of them."
    )
    compare: Names = Field([], description="Other encoders beside it: weights files and Hugging Face HuBERT folders.")
    baselines: Baselines = Field(
        USUAL_BASELINES,
        description="What is probed beside it: true (mfcc, mfcc_clip, untrained), false, or a list of mfcc, mfcc_clip (each "
        "clip's mean and deviation taken out), mfcc_context (and with 4 frames on each side), logmel, logmel_clip, "
        "logmel_context, mixture (the posteriors that training aimed at), untrained (fresh weights).",
    )
    train_path: Paths | None = Field(
        None,
        description="More labelled clips; recognition and frame_phones then train on these and test on test_path. null: "
        "random splits of test_path.",
    )
    splits: int = Field(3, ge=1, description="Random 80/20 splits.")
    apart: str | None = Field(
        None, description="Label (speaker, say) that training and test clips of a split never share."
    )
    max_clips: int = Field(2000, ge=2, description="Clips of each set, drawn by seed, that are probed.")
    max_frames: int = Field(
        50000, ge=100, description="Frames of each side of a split, drawn by seed, for frame probes."
    )
    steps: int = Field(1000, ge=1, description="Updates, of 16 clips each, that recognition heads are trained for.")
    beam: int = Field(1, ge=1, description="Width of the beam search that decodes recognition heads; 1: greedy.")


class Dump(Section):
    path: Paths | None = Field(
        None,
        description="evalsjepa: data set whose units and posteriors of every frame are written to dump/; null: none.",
    )
    source: Literal["encoder", "targets"] = Field(
        "encoder",
        description="Whose posteriors: the encoder's through its head, without masks, or those of the mixture that training "
        "aimed at.",
    )
    top_k: int = Field(3, ge=1, description="Components of each frame whose posteriors are kept.")
