"""A configuration for given recordings: size, frontend, mixture, batch and length of the run, with
a reason for each.

Measured on an hour of speech (docs/results.md): sizes, passes, masks, batch and mixture there. The
rest follows the proportions of docs/training.md and is not measured; the reasons say which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

PHASE_2_START = 0.35  # of the run
_PASSES = 8  # measured on an hour: 8 better than 4, 2, 1
_MOST_PASSES = 100  # over a small corpus
_FEWEST_UPDATES, _MOST_UPDATES = 3_000, 30_000  # by which audio per update is chosen
_FEWEST_PASSES = 3.0  # a larger size that allows fewer is not chosen
_USED = 0.9  # of the time allowed; the rest: mixture, validation, evaluation
_SECONDS_PER_UPDATE = (10.0, 2880.0)  # measured on an hour; the paper's
_FRAMES_PER_COMPONENT = 1_800  # K = 100 for an hour
_LONG_WARM_UP = 60_000  # updates from which the paper's 5,000 are a small part
_WAVEFORM_HOURS, _BOTH_PHASES_HOURS, _AUGMENT_HOURS, _LEARNED_POSITIONS_HOURS = 200.0, 100.0, 5.0, 1_000.0
_SIZES = (("tiny", 0.0), ("mini", 0.3), ("small", 20.0), ("base", 300.0), ("large", 10_000.0))  # hours from which
_PEAKS = {"tiny": 1.5e-3, "mini": 1.5e-3, "small": 1e-3, "base": 1e-4, "large": 1e-4}
_MICRO_BATCH = {"tiny": 240.0, "mini": 240.0, "small": 180.0, "base": 120.0, "large": 60.0}  # on a GPU, seconds
_MICRO_BATCH_CPU = 20.0

Pace = Callable[[str, str], float]


@dataclass(frozen=True)
class Corpus:
    """What is trained on. `cropped`: the fraction of the audio beyond the first 15 s of clips;
    `test_hours`: of the test set; `held_out`: the fraction of the recordings that it is, None if it
    is a set of its own."""

    hours: float
    clips: int
    frames: int
    cropped: float
    test_hours: float
    held_out: float | None = None

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.frames / (self.hours * 3600)


class Setting(NamedTuple):
    """One key of the configuration: value, and why."""

    key: str
    value: Any
    reason: str = ""


class Recommendation(NamedTuple):
    """The settings in the order of the file; expected seconds of training."""

    settings: list[Setting]
    seconds: float


@dataclass(frozen=True)
class _Length:
    """Of a run: passes over the corpus, seconds of audio per update, updates, seconds."""

    passes: float
    per_update: float
    updates: int
    seconds: float
    limited: bool


def recommend(
    corpus: Corpus,
    *,
    on_gpu: bool,
    cores: int,
    hours: float,
    pace: Pace,
    size: str | None = None,
    frontend: str | None = None,
) -> Recommendation:
    """Settings for a run of at most `hours`. `pace`: seconds of audio per second of training for a
    size and a frontend, measured on this machine. `size`, `frontend`: if the user chose them."""
    frontend = frontend or ("waveform" if corpus.hours >= _WAVEFORM_HOURS else "logmel")
    size, rate = (size, pace(size, frontend)) if size else _size(corpus, frontend, hours, pace)
    length = _length(corpus, rate, hours)
    groups = (
        _data(corpus, on_gpu, cores),
        _model(corpus, size, frontend, length),
        _run(corpus, size, on_gpu, length),
        _mixture(corpus, length),
    )
    return Recommendation([setting for group in groups for setting in group], length.seconds)


def held_out_fraction(hours: float, clips: int) -> float:
    """The fraction to hold out of recordings without a test set: a tenth, but not more than an hour
    where twenty clips are less than two; at most a fifth."""
    return _rounded(min(0.2, max(min(20 / clips, 2 / hours), min(0.1, 1 / hours), 0.001)))


def has_both_phases(hours: float) -> bool:
    """Whether a run on so many hours gets a phase 2."""
    return hours >= _BOTH_PHASES_HOURS


def _size(corpus: Corpus, frontend: str, hours: float, pace: Pace) -> tuple[str, float]:
    """The largest size that so much audio suffices for and that the time allows enough passes of;
    with its pace."""
    chosen = None
    for size, least in _SIZES:
        if chosen is not None and corpus.hours < least:
            break
        rate = pace(size, frontend)
        passes = hours * _USED * rate / corpus.hours
        if chosen is not None and passes < min(_FEWEST_PASSES, _wanted(corpus) / corpus.hours):
            break
        chosen = size, rate
    assert chosen is not None
    return chosen


def _wanted(corpus: Corpus) -> float:
    """Hours of audio that a run should hear: eight passes, more of a small corpus."""
    by_updates = _FEWEST_UPDATES * _SECONDS_PER_UPDATE[0] / 3600
    return max(_PASSES * corpus.hours, min(_MOST_PASSES * corpus.hours, by_updates))


def _length(corpus: Corpus, rate: float, hours: float) -> _Length:
    possible = hours * _USED * rate
    heard = min(possible, _wanted(corpus))
    low, high = _SECONDS_PER_UPDATE
    per_update = min(high, max(low, 10 * round(heard * 3600 / _MOST_UPDATES / 10)))
    passes = heard / corpus.hours
    if passes >= 1:
        passes = max(1, math.floor(passes))
    updates = max(1, round(passes * corpus.hours * 3600 / per_update))
    return _Length(passes, per_update, updates, passes * corpus.hours * 3600 / rate, possible < _wanted(corpus))


def _data(corpus: Corpus, on_gpu: bool, cores: int) -> Iterator[Setting]:
    if corpus.held_out is not None:
        yield Setting("dataset.test_path", None, "held out: whole speakers, where a manifest names them")
        yield Setting("dataset.held_out", corpus.held_out, f"of the audio; here {_hours(corpus.test_hours)}")
    validated = _rounded(min(1.0, max(0.25 / corpus.test_hours, 0.02)))
    yield Setting("dataset.val_prob", validated, "part of the test set that every epoch is validated on")
    yield Setting("dataset.max_seconds", 15.0, "longest clip, or window of a longer one")
    windows, crop = ("windows", "all of a long recording is heard"), ("crop", "few clips are longer than 15 s")
    yield Setting("dataset.long_clips", *(windows if corpus.cropped > 0.05 else crop))
    if corpus.cropped > 0.05:
        yield Setting("dataset.window_overlap", 0.0, "an epoch hears everything once")
    yield Setting("dataset.num_workers", min(8 if on_gpu else 2, cores), "processes that decode audio")
    on, off = (True, "noise and other voices in half of the clips"), (False, "no gain measured on an hour")
    yield Setting("dataset.augment.enabled", *(on if corpus.hours >= _AUGMENT_HOURS else off))


def _model(corpus: Corpus, size: str, frontend: str, length: _Length) -> Iterator[Setting]:
    yield Setting("model.size", size, _reason_for_size(corpus, size))
    if frontend == "waveform":
        yield Setting("model.frontend", frontend, "convolutions, learned from hundreds of hours")
    else:
        yield Setting("model.frontend", frontend, "convolutions would need hundreds of hours")
        yield Setting("model.mel_statistics", "both", "of corpus and clip: best of three on an hour")
    large = corpus.hours >= _LEARNED_POSITIONS_HOURS
    near, far = ("convolution", "an hour suffices to learn them"), ("learned", "the paper's")
    yield Setting("model.predictor_positions", *(far if large else near))
    short, long = (0.0, "short runs learn faster without dropout"), (0.1, "the paper's")
    rate, why = short if length.updates < _MOST_UPDATES / 2 else long
    names = ("dropout", "attention_dropout", "activation_dropout", "predictor_dropout")
    yield Setting("model.overrides", {**dict.fromkeys(names, rate), "layer_drop": rate / 2}, why)
    yield Setting("masking.mask_ratio", *((0.65, "the paper's") if large else (0.5, "best on an hour")))
    yield Setting("masking.mask_length", 10 if large else 5, "frames")


def _reason_for_size(corpus: Corpus, size: str) -> str:
    names = [name for name, _ in _SIZES]
    larger = names[names.index(size) + 1 :]
    allowed = [name for name, least in _SIZES if corpus.hours >= least]
    if larger and larger[0] in allowed:
        return f"{larger[0]} would make fewer than {_FEWEST_PASSES:.0f} passes in that time"
    measured = ": best on an hour" if size == "mini" else ""
    return f"for {_hours(corpus.hours)} of audio{measured}"


def _run(corpus: Corpus, size: str, on_gpu: bool, length: _Length) -> Iterator[Setting]:
    if length.passes >= 1:
        yield Setting("train.epochs", int(length.passes), f"passes: {_reason_for_passes(length)}")
    else:
        yield Setting("train.max_steps", length.updates, f"{length.passes:.2f} of a pass fits into the time allowed")
    micro = min(length.per_update, _MICRO_BATCH[size] if on_gpu else _MICRO_BATCH_CPU)
    accumulated = max(1, round(length.per_update / micro))
    yield Setting("train.batch_size", 8, "of validation")
    yield Setting(
        "train.max_batch_seconds", length.per_update / accumulated, "of audio in a micro-batch of like lengths"
    )
    yield Setting("train.grad_accum", accumulated, f"{length.per_update:.0f} s per update, {length.updates:,} updates")
    yield Setting("train.log_every", max(10, min(100, length.updates // 50)))
    yield Setting("train.precision", "auto", "bf16 where this machine is faster in it")
    both, one = (
        (PHASE_2_START, "a fraction of the run, as in the paper"),
        (-1, "phase 1 alone: phase 2 gained nothing on an hour"),
    )
    phases = has_both_phases(corpus.hours)
    yield Setting("train.phase2_start_epoch", *(both if phases else one))
    if corpus.hours >= _WAVEFORM_HOURS:
        yield Setting("train.spectral_warmup", 0.1, "the convolutions also learn the spectrum at first")
    yield Setting("optimizer.lr", _PEAKS[size], f"peak, for {size}")
    paper, own = (5000, "the paper's"), (0.08, "of each phase")
    yield Setting("scheduler.warmup_steps", *(paper if length.updates >= _LONG_WARM_UP else own))
    yield Setting("checkpoint.max_checkpoint", 3)
    yield Setting(
        "checkpoint.ckpt_step", 1000 if length.seconds > 1800 else 0, "also after so many updates; 0: epochs only"
    )
    yield Setting("best.metric", "pitch_match" if phases else "kl", "selects best.pt, without labels")


def _reason_for_passes(length: _Length) -> str:
    if length.limited:
        return "as many as fit into the time allowed"
    return "as measured on an hour" if length.passes <= _PASSES else f"for {length.updates:,} updates"


def _mixture(corpus: Corpus, length: _Length) -> Iterator[Setting]:
    clusters = int(min(500, max(20, 10 * round(corpus.frames / _FRAMES_PER_COMPONENT / 10))))
    yield Setting("gmm.num_clusters", clusters, f"K: {corpus.frames / clusters:,.0f} frames of training per component")
    yield Setting("gmm.num_clusters_phase2", clusters)
    yield Setting("gmm.normalise", "clip", "removes speaker and channel from what is clustered")
    yield Setting("gmm.context", 4, "frames on each side, projected to:")
    dimensions = min(20, clusters // 2)  # fewer than components
    yield Setting("gmm.dimensions", dimensions)
    yield Setting("gmm.dimensions_phase2", dimensions)
    yield Setting("gmm.projection_phase2", "predictions")
    yield Setting("gmm.fit_frames", int(min(200_000, max(10_000, 1_000 * round(corpus.frames / 3_000)))))
    memory = max(10, 100 * clusters / (length.per_update * corpus.frame_rate))
    why = f"memory of the mixture: {memory:.0f} updates, 100 frames per component"
    yield Setting("gmm.param_decay", round(1 - 1 / memory, 3), why)
    slow = 0.9999 if length.updates > _LONG_WARM_UP else 0.9995
    yield Setting("gmm.ema_decay_fast", 0.999, "memory of the EMA encoder: 1,000 updates")
    yield Setting("gmm.ema_decay_slow", slow, f"and in turn {1 / (1 - slow):,.0f}")
    yield Setting("gmm.ema_switch_every", max(100, length.updates // 10))
    chosen, fixed = (True, "layer of highest effective rank"), (False, "a short run keeps its layer")
    yield Setting("gmm.auto_layer", *(chosen if length.updates > 100_000 else fixed))
    yield Setting("gmm.ema_layer", -1, "the top one")


def nested(settings: list[Setting]) -> dict[str, Any]:
    """The settings as sections."""
    found: dict[str, Any] = {}
    for setting in settings:
        *sections, name = setting.key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = setting.value
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _hours(hours: float) -> str:
    return f"{hours * 60:.2g} minutes" if hours < 1 else f"{hours:,.1f} hours" if hours < 10 else f"{hours:,.0f} hours"
