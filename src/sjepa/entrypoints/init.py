"""`trainsjepa --init`: a commented configuration for the user's recordings."""

from __future__ import annotations

import re
import time
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
from sjepa.dataset.loader import Batching, Loader, WindowDataset
from sjepa.dataset.windows import crops
from sjepa.reporting.console import Console, duration
from sjepa.s_jepa.recommend import (
    PHASE_2_START,
    Corpus,
    Pace,
    Recommendation,
    Setting,
    has_both_phases,
    held_out_fraction,
    nested,
    recommend,
)
from sjepa.s_jepa.rehearsal import audio_rate
from sjepa.s_jepa.schema import load_config, parse_config
from sjepa.s_jepa.settings import Config
from sjepa.training.data import drawn, held_out, load_clips
from sjepa.training.feeding import load_set

_PACE_SECONDS = 10.0  # of audio in the micro-batch that is timed
_READ_CLIPS, _READ_SECONDS, _READING_SECONDS = 200, 15.0, 2.0  # clips, longest, for at most so long
_FEWEST_FRAMES = 1_000  # to train on
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
    given, console = _given(audio, overrides, keys), Console()
    name = given.run_name
    out = out or Path(f"{name}.yaml")
    _check_free(out)
    engine = Engine(device=given.device, precision=given.train.precision, launch=False)
    corpus, train = _corpus(given, keys, console)
    measured = _pace(engine, console, reading=_reading_rate(given, train), both_phases=has_both_phases(corpus.hours))
    found = recommend(
        corpus,
        on_gpu=_on_gpu(engine),
        cores=usable_cores(),
        hours=hours,
        pace=measured,
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


def _pace(engine: Engine, console: Console, *, reading: float, both_phases: bool) -> Pace:
    """Measures updates on noise. `reading`: seconds of audio that one process reads per second."""
    shares = {1: PHASE_2_START, 2: 1 - PHASE_2_START} if both_phases else {1: 1.0}
    # on a GPU the workers read meanwhile (two for one, as measured); on a CPU they take its time
    readers = reading * max(1, usable_cores() // 2)

    def pace(size: str, frontend: str) -> float:
        chosen = [f"model.size={size}", f"model.frontend={frontend}", "model.predictor_positions=convolution"]
        seconds = 0.0  # per second of audio
        for phase, share in shares.items():
            config = load_config(None, [*chosen, *_NO_DROPOUT, *(["train.phase=2"] if phase == 2 else [])])
            seconds += share / audio_rate(engine, config, _PACE_SECONDS * (12 if _on_gpu(engine) else 1))
        rate = min(1 / seconds, readers) if _on_gpu(engine) else 1 / (seconds + 1 / reading)
        console.note(f"{size}: {rate:,.0f} s of audio per second of training, measured on {engine.describe()}")
        return rate

    return pace


def _on_gpu(engine: Engine) -> bool:
    return engine.device.type != "cpu"


def _given(audio: str, overrides: Sequence[str], keys: Collection[str]) -> Config:
    """The defaults with the overrides and `audio`. Raises UserError for keys that contradict
    --init."""
    for item in overrides:
        key = item.partition("=")[0]
        if key in Config.model_fields and hasattr(Config.model_fields[key].annotation, "model_fields"):
            raise UserError(f"--init: {key} is a whole section; give its keys one by one, as {key}.KEY=VALUE")
    if "dataset.hf.streaming" in keys:
        raise UserError("--init: a stream does not say how much audio it holds; leave dataset.hf.streaming out")
    for key in ("dataset.train_path", "dataset.use_hdf5", "dataset.train_h5", "dataset.test_h5"):
        if key in keys:
            raise UserError(f"--init: {key} does not go with it; the recordings are what follows --init, .h5 files too")
    given = load_config(None, ["device=auto", *overrides])
    name = given.run_name if "run_name" in keys else _run_name(Path(audio))
    dataset = given.dataset.model_copy(update={"train_path": audio})
    return given.model_copy(update={"run_name": name, "dataset": dataset})


_NO_DROPOUT = (
    "model.overrides={dropout: 0, attention_dropout: 0, activation_dropout: 0, predictor_dropout: 0, layer_drop: 0}",
)


def _corpus(config: Config, keys: Collection[str], console: Console) -> tuple[Corpus, Clips]:
    """What is trained on, without what is held out."""
    clip_set = load_clips(config, config.dataset.train_path, "--init", progress=console.progress)
    console.plain(f"found       {clip_set.describe()}")
    console.left_out(clip_set.remarks, clip_set.dropped)
    share = None
    if "dataset.test_path" in keys and config.dataset.test_path is not None:
        test = load_set(config, "test_path", progress=console.progress)
    elif len(clip_set.clips) < 2:
        raise UserError(
            f"--init: {config.dataset.train_path} is one recording, and a part has to be held out; cut it in two, or give "
            "dataset.test_path=AUDIO"
        )
    else:
        settings, all_clips = config.dataset, clip_set.clips
        share = settings.held_out if "dataset.held_out" in keys else held_out_fraction(all_clips.hours, len(all_clips))
        clip_set, test = held_out(clip_set, share, config.seed)
    clips = clip_set.clips
    frames = int(config.geometry.frames(clips.length_N).sum())
    if frames < _FEWEST_FRAMES:
        raise UserError(
            f"--init: {config.dataset.train_path}: {clips.hours * 3600:.1f} s of audio to train on is too little for a "
            "mixture; give at least a minute"
        )
    return Corpus(clips.hours, len(clips), frames, _cropped(clips), test.clips.hours, share), clips


def _reading_rate(config: Config, clips: Clips) -> float:
    """Seconds of audio per second that one process reads of these recordings."""
    few = clips.subset(drawn(clips, min(len(clips), _READ_CLIPS), config.seed, "reading rate"))
    windows = crops(few.length_N, round(_READ_SECONDS * few.sample_rate))
    dataset = WindowDataset(few, windows, seed=config.seed, fewest_samples=config.geometry.fewest_samples)
    started, samples = time.perf_counter(), 0
    for batch in Loader(dataset, Batching(1)).epoch(0):
        samples += batch.total_samples
        if time.perf_counter() - started > _READING_SECONDS:
            break
    return max(1, samples) / few.sample_rate / (time.perf_counter() - started)


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
