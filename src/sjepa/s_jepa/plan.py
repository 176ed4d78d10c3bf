"""The training schedule: targets, number of components, loss, learning rate and steps of each
stage.

[Two-Phase Training]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sjepa.core.errors import UserError
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.sizes import hyperparameters
from sjepa.training.schedule import RateCurve, RunProgress, Schedule, Stage

SPECTRUM, PHASE1, PHASE2, MASKED_ONLY = "phase 1 with spectrum", "phase 1", "phase 2", "phase 2, masked only"
_NEAR = 0.05  # fraction of the run
_NOMINAL_STEPS = 1000  # assumed steps per epoch until the training set is known


@dataclass(frozen=True, kw_only=True)
class SJEPAStage(Stage):
    """A stage of S-JEPA: kind of targets, number of components, frames in the loss."""

    targets: Literal["mfcc", "online"]
    num_clusters: int
    visible_loss: bool
    spectrum: bool = False

    def describe(self) -> dict[str, str]:
        loss = "masked + visible" if self.visible_loss else "masked"
        return {"targets": self.targets, "K": str(self.num_clusters), "loss over": loss}


def plan(config: Config, steps_per_epoch: int, *, progress: RunProgress | None = None) -> Schedule[SJEPAStage]:
    """The schedule of a configuration, with `steps_per_epoch` optimiser steps per epoch.

    Raises UserError, listing all problems, if the settings are inconsistent.
    """
    problems = plan_problems(config, steps_per_epoch) if progress is None else _contradictions(config)
    if problems:
        raise UserError("\n".join(problems))
    total = _total_steps(config, steps_per_epoch)
    starts = _starts(config, steps_per_epoch)
    if progress is not None:
        if total < progress.step:
            raise UserError(f"{_length(config)} is {total} updates, but the run is already at update {progress.step}")
        starts = _kept(starts, progress)
    order = [(name, step) for name, step in starts.items() if step < total]
    ends = [step for _, step in order[1:]] + [total]
    curves = _curves(config, starts, total)
    stages = [_stage(config, name, start, end, starts, curves) for (name, start), end in zip(order, ends, strict=True)]
    return Schedule(tuple(stage for stage in stages if stage.start_step < stage.end_step), steps_per_epoch)


def _kept(starts: dict[str, int], progress: RunProgress) -> dict[str, int]:
    """First steps of stages for a resumed run: entered stages keep theirs, later ones start no
    earlier than the current step."""
    first = next(iter(starts))
    kept = {name: progress.entered.get(name, max(step, progress.step)) for name, step in starts.items()}
    kept[first] = 0
    if SPECTRUM in kept and PHASE2 in kept:  # an extended run has a longer warm-up
        kept[PHASE1] = min(kept[PHASE1], kept[PHASE2])
    if MASKED_ONLY in progress.entered:  # phase 2 may have been empty before
        kept[PHASE2] = min(kept[PHASE2], progress.entered[MASKED_ONLY])
    return kept


def plan_problems(config: Config, steps_per_epoch: int | None = None) -> list[str]:
    """Inconsistencies of the schedule, one line each. Without `steps_per_epoch`, known only once
    the data are loaded, checks that mix steps and epochs are skipped."""
    problems = _contradictions(config)
    if problems or (steps_per_epoch is None and _mixes_units(config)):
        return problems
    per_epoch = steps_per_epoch or _NOMINAL_STEPS
    total, starts = _total_steps(config, per_epoch), _starts(config, per_epoch)
    end = f"the end of the run ({_length(config)})"
    for name, switch in ((PHASE2, "phase2_start"), (MASKED_ONLY, "masked_only")):
        if starts.get(name, 0) >= total:
            problems.append(f"{_named(config, switch)} is not before {end}")
    if SPECTRUM in starts and starts[PHASE1] >= starts.get(PHASE2, total):
        before = "the switch to phase 2" if PHASE2 in starts else end
        problems.append(f"train.spectral_warmup: {config.train.spectral_warmup:g} of the run is not before {before}")
    if MASKED_ONLY in starts and starts[MASKED_ONLY] < starts[PHASE2]:
        problems.append(
            f"{_named(config, 'masked_only')} comes before the switch to phase 2 ({_named(config, 'phase2_start')}): "
            "the visible loss is dropped partway through phase 2"
        )
    return problems


def _contradictions(config: Config) -> list[str]:
    """Inconsistencies that do not depend on the number of steps per epoch."""
    train = config.train
    problems = [
        f"train.{name}_epoch and train.{name}_step: give one of the two"
        for name in ("phase2_start", "masked_only")
        if getattr(train, f"{name}_epoch") != -1 and getattr(train, f"{name}_step") is not None
    ]
    starts_online, switches = _starts_in_phase2(config), _is_set(config, "phase2_start")
    if starts_online and switches:
        key = "train.phase: 2" if train.phase == 2 else "gmm.online: true"
        problems.append(f"{_named(config, 'phase2_start')}: the run already starts in phase 2 ({key})")
    if train.phase2_start_epoch == 0:
        problems.append("train.phase2_start_epoch: 0 would leave no phase 1; set train.phase: 2 instead")
    if _is_set(config, "masked_only") and not (starts_online or switches):
        problems.append(
            f"{_named(config, 'masked_only')}: the masked-only switch belongs to phase 2, which this run never reaches; for "
            "phase 1 set train.use_visible_loss: false and dataset.augment.enabled: false"
        )
    layers = hyperparameters(config.model.size, config.model.overrides).num_layers
    if (starts_online or switches) and not -layers <= config.gmm.ema_layer < layers:
        problems.append(
            f"gmm.ema_layer: {config.gmm.ema_layer} is outside the encoder's {layers} layers (0 to {layers - 1}, or −1 to "
            f"−{layers} from the top)"
        )
    if config.train.spectral_warmup > 0:
        if starts_online:
            problems.append("train.spectral_warmup belongs to phase 1, which this run does not have")
        if config.model.frontend != "waveform":
            problems.append(f"train.spectral_warmup: a {config.model.frontend} frontend has nothing to learn")
    if config.train.freeze is not None and config.init_weights is None:
        problems.append("train.freeze: without init_weights the layers that it keeps would never learn anything")
    if config.train.freeze is not None and config.train.spectral_warmup > 0:
        problems.append("train.spectral_warmup: train.freeze keeps the frontend as it is")
    if config.train.freeze is not None and config.train.freeze >= layers:
        problems.append(f"train.freeze: {config.train.freeze} of {layers} encoder layers would leave none to train")
    return problems


def reaches_phase2(config: Config) -> bool:
    """Whether any stage of the run has online targets."""
    return _starts_in_phase2(config) or _is_set(config, "phase2_start")


def _starts_in_phase2(config: Config) -> bool:
    return config.train.phase == 2 or config.gmm.online


def _is_set(config: Config, name: str) -> bool:
    return getattr(config.train, f"{name}_epoch") != -1 or getattr(config.train, f"{name}_step") is not None


def _named(config: Config, name: str) -> str:
    """A switch as written in the configuration: `train.masked_only_epoch: 5`."""
    step = getattr(config.train, f"{name}_step")
    kind, value = ("step", step) if step is not None else ("epoch", getattr(config.train, f"{name}_epoch"))
    return f"train.{name}_{kind}: {value}"


def _length(config: Config) -> str:
    train = config.train
    return f"train.max_steps: {train.max_steps}" if train.max_steps else f"train.epochs: {train.epochs}"


def _mixes_units(config: Config) -> bool:
    """Whether some times are given in steps and others in epochs (or fractions, which are rounded
    to epochs)."""
    train = config.train
    in_steps = [train.max_steps, train.phase2_start_step, train.masked_only_step]
    in_epochs = [value for value in (train.phase2_start_epoch, train.masked_only_epoch) if value != -1]
    return any(value is not None for value in in_steps) and (bool(in_epochs) or train.max_steps is None)


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    return config.train.max_steps or config.train.epochs * steps_per_epoch


def _starts(config: Config, steps_per_epoch: int) -> dict[str, int]:
    """The first step of every stage, in order."""
    total = _total_steps(config, steps_per_epoch)
    starts = {PHASE2: 0} if _starts_in_phase2(config) else {PHASE1: 0}
    if config.train.spectral_warmup > 0:
        starts = {SPECTRUM: 0, PHASE1: max(1, round(config.train.spectral_warmup * total))}
    for name, switch in ((PHASE2, "phase2_start"), (MASKED_ONLY, "masked_only")):
        if _is_set(config, switch):
            step, epoch = getattr(config.train, f"{switch}_step"), getattr(config.train, f"{switch}_epoch")
            starts[name] = step if step is not None else _step_of(epoch, steps_per_epoch, total)
    return starts


def _step_of(epoch: float, steps_per_epoch: int, total: int) -> int:
    """First step at `epoch`: an integer counts epochs; a fraction is of the run, rounded to the end
    of an epoch if within 5% of the run."""
    if epoch == int(epoch):
        return int(epoch) * steps_per_epoch
    nearest = round(epoch * total / steps_per_epoch) * steps_per_epoch
    is_near = abs(nearest - epoch * total) <= _NEAR * total
    return nearest if is_near and 0 < nearest < total else max(1, round(epoch * total))


def _curves(config: Config, starts: Mapping[str, int], total: int) -> dict[int, RateCurve]:
    """The learning-rate curve of each phase; without `rewarm_on_phase2` a single curve over the
    run."""
    peak, ratio = config.optimizer.lr, config.scheduler.phase2_lr_ratio
    switch = starts.get(PHASE2, total)
    if PHASE1 not in starts:
        return {2: _curve(config, 0, total, peak * ratio)}
    if not config.scheduler.rewarm_on_phase2 or switch >= total:
        whole = _curve(config, 0, total, peak)
        return {1: whole, 2: whole}
    return {1: _curve(config, 0, switch, peak), 2: _curve(config, switch, total, peak * ratio)}


def _curve(config: Config, start: int, end: int, peak: float) -> RateCurve:
    warmup = config.scheduler.warmup_steps
    steps = round(warmup * (end - start)) if warmup < 1 else int(warmup)
    return RateCurve(
        start_step=start,
        end_step=end,
        peak=peak,
        warmup_steps=steps,
        kind=config.scheduler.kind,
        min_ratio=config.scheduler.min_ratio,
    )


def _stage(
    config: Config, name: str, start: int, end: int, starts: Mapping[str, int], curves: Mapping[int, RateCurve]
) -> SJEPAStage:
    phase = 1 if name in (SPECTRUM, PHASE1) else 2
    switched = phase == 2 and PHASE1 in starts
    return SJEPAStage(
        name=name,
        phase=phase,
        start_step=start,
        end_step=end,
        phase_start_step=0 if phase == 1 else starts[PHASE2],
        targets="mfcc" if phase == 1 else "online",
        num_clusters=config.gmm.num_clusters_phase2 if switched else config.gmm.num_clusters,
        visible_loss=config.train.use_visible_loss and name != MASKED_ONLY,
        augment=config.dataset.augment.enabled and name != MASKED_ONLY,
        rate=curves[phase],
        spectrum=name == SPECTRUM,
    )
