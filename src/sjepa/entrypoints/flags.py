"""Flags of `traintok`: other names of configuration keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from sjepa.core.errors import UserError


class Flag(NamedTuple):
    """A flag, the key it sets (None: see `as_overrides`), and the type of its value (None: a
    switch)."""

    name: str
    key: str | None
    kind: Any = str


FLAGS = (
    Flag("jsonl", "dataset.train_path"),
    Flag("hf_dataset", None),
    Flag("hf_audio_field", "dataset.hf.audio_field"),
    Flag("hf_speaker_field", "dataset.hf.speaker_field"),
    Flag("hf_duration_field", "dataset.hf.duration_field"),
    Flag("hf_split", "dataset.hf.split"),
    Flag("out_dir", None),
    Flag("stage", "train.stage"),
    Flag("sample_rate", "dataset.sample_rate", int),
    Flag("max_seconds", "dataset.max_seconds", float),
    Flag("batch_size", "train.batch_size", int),
    Flag("ds_config", "train.ds_config"),
    Flag("max_steps", "train.max_steps", int),
    Flag("save_every_steps", "checkpoint.ckpt_step", int),
    Flag("lr", "optimizer.lr", float),
    Flag("mask_ratio", "mask.ratio", float),
    Flag("sample_wav", "decoder.sample_wav"),
    Flag("disc_start_step", "decoder.disc_start_step", int),
    Flag("sample_every", "decoder.sample_every", int),
    Flag("spectral_weight", "decoder.spectral_weight", float),
    Flag("gan_weight", "decoder.gan_weight", float),
    Flag("resume", "checkpoint.resume", None),
    Flag("code_dim", "model.overrides.code_dim", int),
    Flag("channels", "model.overrides.channels", "list"),
    Flag("strides", "model.overrides.strides", "list"),
    Flag("n_res_blocks", "model.overrides.residual_blocks", int),
    Flag("n_conformer", "model.overrides.conformer_layers", int),
    Flag("heads", "model.overrides.heads", int),
)
# where the data set's rows hold audio, speaker and duration unless a flag says so
_HUB_FIELDS = {"hf_audio_field": "mp3", "hf_speaker_field": "json.speaker_id", "hf_duration_field": "json.duration_ms"}


_ABOUT = {"out_dir": "runs_root and run_name", "hf_dataset": "dataset.train_path=hf://NAME, streamed"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("flags", "other names of configuration keys")
    for flag in FLAGS:
        about = f"= {flag.key or _ABOUT[flag.name]}"
        if flag.kind is None:
            group.add_argument(f"--{flag.name}", action="store_true", help=about)
        else:
            kind = str if flag.kind == "list" else flag.kind
            group.add_argument(f"--{flag.name}", type=kind, metavar=flag.name.split("_")[-1].upper(), help=about)


def as_overrides(options: argparse.Namespace) -> list[str]:
    """The overrides that the given flags stand for. Raises UserError if they contradict each
    other."""
    given = {flag.name: getattr(options, flag.name) for flag in FLAGS}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if "jsonl" in given and "hf_dataset" in given:
        raise UserError("--jsonl and --hf_dataset: give one of the two")
    found: dict[str, Any] = {}
    if "hf_dataset" in given:
        given = _HUB_FIELDS | given
        found |= {"dataset.train_path": f"hf://{given['hf_dataset']}", "dataset.hf.streaming": True}
    if "out_dir" in given:
        folder = Path(given["out_dir"])
        found |= {"runs_root": str(folder.parent), "run_name": folder.name, "checkpoint.shards": True}
    for flag in FLAGS:
        if flag.key and flag.name in given:
            found[flag.key] = _listed(flag, given[flag.name]) if flag.kind == "list" else given[flag.name]
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def _listed(flag: Flag, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{flag.name}: {text} is not a list of whole numbers such as 8,8,5") from None
