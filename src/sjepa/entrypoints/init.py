"""`trainsjepa --init`: a commented configuration for the user's recordings."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sjepa import __version__
from sjepa.config.load import overridden, with_overrides
from sjepa.config.templates import template
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.core.threads import usable_cores
from sjepa.dataset.clips import Clips
from sjepa.reporting.console import Console, duration
from sjepa.s_jepa.recommend import Corpus, Recommendation, Setting, nested, recommend
from sjepa.s_jepa.rehearsal import audio_rate
from sjepa.s_jepa.schema import load_config, parse_config
from sjepa.s_jepa.settings import Config
from sjepa.training.data import load_clips
from sjepa.training.feeding import load_set

_PACE_SECONDS = 10.0  # of audio in the micro-batch that is timed
_SECTION_NOTES = {"gmm": "phase-2 keys have an effect where phase2_start_epoch is set"}
_WIDTH = 34  # column of the comments


def write_template(name: str, out: Path | None) -> int:
    """Writes a shipped configuration. Returns the exit code."""
    device = Engine(device="auto", precision="auto", launch=False).device.type
    text = template(name, default_set="cpu" if device == "cpu" else "gpu")
    _write(out or Path(f"{Path(name).stem}.yaml"), text)
    return 0


def write_configuration(audio: str, out: Path | None, *, hours: float, overrides: Sequence[str] = ()) -> int:
    """Scans `audio`, measures this machine, and writes a configuration for a run of at most
    `hours`; `overrides` are taken over. Returns the exit code."""
    keys = overridden(overrides)
    given = _given(audio, overrides, keys)
    console = Console()
    name = given.run_name if "run_name" in keys else _run_name(Path(audio))
    out = out or Path(f"{name}.yaml")
    _check_free(out)
    engine = Engine(device=given.device, precision=given.train.precision, launch=False)
    corpus = _corpus(given, console, has_test="dataset.test_path" in keys and given.dataset.test_path is not None)
    on_gpu = engine.device.type != "cpu"

    def pace(size: str, frontend: str) -> float:
        chosen = [f"model.size={size}", f"model.frontend={frontend}", "model.predictor_positions=convolution"]
        rate = audio_rate(engine, load_config(None, [*chosen, *_NO_DROPOUT]), _PACE_SECONDS * (12 if on_gpu else 1))
        console.note(f"{size}: {rate:,.0f} s of audio per second of training, measured on {engine.describe()}")
        return rate

    found = recommend(
        corpus,
        on_gpu=on_gpu,
        cores=usable_cores(),
        hours=hours,
        pace=pace,
        size=given.model.size if "model.size" in keys else None,
        frontend=given.model.frontend if "model.frontend" in keys else None,
    )
    first = [
        Setting("run_name", name, "folder of the results, under runs_root"),
        Setting("runs_root", given.runs_root),
        Setting("device", engine.device.type),
        Setting("seed", given.seed),
        Setting("dataset.train_path", audio),
    ]
    length = {"train.epochs", "train.max_steps"}
    settings = [item for item in (*first, *found.settings) if item.key not in length or not keys & length]
    values = with_overrides(nested(settings), overrides)
    config = parse_config(values, where=str(out))
    reasons = {**{item.key: item.reason for item in settings}, **dict.fromkeys(keys, "given")}
    _write(out, _text(values, reasons, corpus, found, hours))
    uncounted = keys & {*length, "train.max_batch_seconds", "train.grad_accum", "dataset.max_train_samples"}
    without = f" (without {', '.join(sorted(uncounted))})" if uncounted else ""
    console.note(
        f"{out}: {config.model.size}, {config.model.frontend}, K = {config.gmm.num_clusters}, about "
        f"{duration(found.seconds)} of training{without}"
    )
    console.plain(f"\nNext:  trainsjepa -c {out} --dry-run     and, without --dry-run, training")
    return 0


def _given(audio: str, overrides: Sequence[str], keys: Collection[str]) -> Config:
    """The defaults with the overrides and `audio`. Raises UserError for keys that contradict
    --init."""
    for item in overrides:
        key = item.partition("=")[0]
        if key in Config.model_fields and hasattr(Config.model_fields[key].annotation, "model_fields"):
            raise UserError(f"--init: {key} is a whole section; give its keys one by one, as {key}.KEY=VALUE")
    for key in ("dataset.train_path", "dataset.use_hdf5", "dataset.train_h5", "dataset.test_h5"):
        if key in keys:
            raise UserError(f"--init: {key} does not go with it; the recordings are what follows --init, .h5 files too")
    given = load_config(None, ["device=auto", *overrides])
    return given.model_copy(update={"dataset": given.dataset.model_copy(update={"train_path": audio})})


_NO_DROPOUT = (
    "model.overrides={dropout: 0, attention_dropout: 0, activation_dropout: 0, predictor_dropout: 0, layer_drop: 0}",
)


def _corpus(config: Config, console: Console, *, has_test: bool) -> Corpus:
    clip_set = load_clips(config, config.dataset.train_path, "--init", progress=console.progress)
    console.plain(f"found       {clip_set.describe()}")
    console.left_out(clip_set.remarks, clip_set.dropped)
    clips = clip_set.clips
    if not has_test and len(clips) < 2:
        raise UserError(
            f"--init: {config.dataset.train_path} is one recording, and a part has to be held out; cut it in two, or give "
            "dataset.test_path=AUDIO"
        )
    tested = load_set(config, "test_path", progress=console.progress).clips.hours if has_test else None
    return Corpus(clips.hours, len(clips), int(config.geometry.frames(clips.length_N).sum()), _cropped(clips), tested)


def _cropped(clips: Clips) -> float:
    """The fraction of the audio beyond 15 s of each clip."""
    seconds_N = clips.length_N / clips.sample_rate
    return float((seconds_N - 15.0).clip(min=0.0).sum() / seconds_N.sum())


def _run_name(audio: Path) -> str:
    name = re.sub(r"\W+", "_", audio.resolve().name.split(".")[0]).strip("_")
    return name or "sjepa"


def _text(
    sections: Mapping[str, Any], reasons: Mapping[str, str], corpus: Corpus, found: Recommendation, hours: float
) -> str:
    """The YAML file, with a reason beside every key that has one."""
    lines = [
        f"# For {corpus.hours:,.2f} h of audio in {corpus.clips:,} clips, and at most {hours:g} h of training (about",
        f"# {duration(found.seconds)} on the machine that this was written on). trainsjepa --init, sjepa {__version__}",
        "# Reference of all keys: trainsjepa --help-config. What the reasons call measured: docs/results.md",
        "",
    ]
    for name, value in sections.items():
        if not isinstance(value, Mapping):
            lines.append(_line(0, name, value, reasons.get(name, "")))
            continue
        lines += ["", *([f"# {_SECTION_NOTES[name]}"] if name in _SECTION_NOTES else []), f"{name}:"]
        lines += _section(value, name, reasons, indent=2)
    return "\n".join(lines) + "\n"


def _section(values: Mapping[str, Any], path: str, reasons: Mapping[str, str], *, indent: int) -> list[str]:
    lines = []
    for key, value in values.items():
        full = f"{path}.{key}"
        if isinstance(value, Mapping) and full not in reasons:
            lines += [" " * indent + f"{key}:", *_section(value, full, reasons, indent=indent + 2)]
        else:
            lines.append(_line(indent, key, value, reasons.get(full, "")))
    return lines


def _line(indent: int, key: str, value: Any, reason: str) -> str:
    written = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False)
    text = f"{' ' * indent}{key}: {written.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"
    return f"{text.ljust(_WIDTH)}  # {reason}" if reason else text


def _check_free(path: Path) -> None:
    if path.exists():
        raise UserError(f"--out: {path} exists; give another name, or delete it")


def _write(path: Path, text: str) -> None:
    _check_free(path)
    write_text(path, text)
