"""Summary printed before training: data, batch, stages."""

from __future__ import annotations

from typing import Any

from sjepa.config.run import RunConfig
from sjepa.dataset.loader import EpochLoader
from sjepa.training.feeding import Data
from sjepa.training.schedule import Schedule


def describe_data(data: Data) -> str:
    """The data sets, one per line."""
    kept = ""
    if data.stream is not None:
        kept = f"{data.stream.num_rows:,} rows of {data.stream.options.spec} as they come; kept of them: "
    lines = [
        f"train       {kept}{data.train.describe()}",
        f"test        {data.test.describe()}",
        f"validation  {len(data.validation):,} clips of the test set, {data.validation.hours:.2f} h",
    ]
    if data.noise is not None:
        lines.append(f"noise       {data.noise.describe()}")
    return "\n".join(lines)


def describe_batches(config: RunConfig, train: EpochLoader, *, grad_accum: int, processes: int) -> str:
    """The global batch in clips and in seconds of audio."""
    share = min(1.0, grad_accum * processes / train.num_batches)
    devices = f" × {processes} devices" if processes > 1 else ""
    clips, seconds = train.epoch_clips * share, train.epoch_samples / train.sample_rate * share
    shape = (
        f"{config.train.batch_size} clips"
        if config.train.max_batch_seconds is None
        else f"at most {config.train.max_batch_seconds:g} s"
    )
    return (
        f"batch       {shape} × {grad_accum} accumulated{devices}: about {clips:.0f} clips and {seconds:.0f} s of audio "
        f"per update, padding {train.padding:.0%}"
    )


def describe_stages(schedule: Schedule[Any]) -> str:
    """The stages as a table."""
    per_epoch = schedule.steps_per_epoch
    rows = [
        {
            "stage": stage.name,
            "from": f"epoch {stage.start_step / per_epoch:.4g}",
            "updates": f"{stage.start_step:,}–{stage.end_step:,}",
            **stage.describe(),
            "augmentation": "on" if stage.augment else "off",
            "peak rate": f"{stage.rate.peak:.2e}",
            "warm-up": f"{stage.rate.warmup_steps:,} steps" if stage.start_step == stage.rate.start_step else "–",
        }
        for stage in schedule.stages
    ]
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    total = f"{schedule.total_steps:,} updates, {schedule.steps_per_epoch:,} in an epoch, {schedule.epochs:,} epochs"
    return "\n".join([*lines, total])
