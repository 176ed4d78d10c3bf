"""What a run says before its first step: data, model, batch, plan."""

from __future__ import annotations

from torchinfo import summary as torchinfo_summary

from sjepa.config.schedule import Schedule
from sjepa.config.schema import Config
from sjepa.dataset.loader import EpochLoader
from sjepa.model import SJEPA
from sjepa.training.feeding import Data


def describe_data(data: Data) -> str:
    """The three sets, one per line."""
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


def describe_model(model: SJEPA) -> str:
    """Layers and parameters (torchinfo), and the share of the encoder, which is what is kept."""
    table = str(torchinfo_summary(model, depth=2, col_names=("num_params", "params_percent"), verbose=0))
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return f"{table}\nencoder {encoder:,} parameters; with predictor and head {whole:,}"


def describe_batches(config: Config, train: EpochLoader, *, grad_accum: int, processes: int) -> str:
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


def describe_plan(schedule: Schedule) -> str:
    """The stages as a small table."""
    head = ("stage", "from", "updates", "targets", "K", "loss over", "augmentation", "peak rate", "warm-up")
    per_epoch = schedule.steps_per_epoch
    rows = [
        (
            stage.name,
            f"epoch {stage.start_step / per_epoch:.4g}",
            f"{stage.start_step:,}–{stage.end_step:,}",
            stage.targets,
            str(stage.num_clusters),
            "masked + visible" if stage.visible_loss else "masked",
            "on" if stage.augment else "off",
            f"{stage.rate.peak:.2e}",
            f"{stage.rate.warmup_steps:,} steps" if stage.start_step == stage.rate.start_step else "–",
        )
        for stage in schedule.stages
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    total = f"{schedule.total_steps:,} updates, {schedule.steps_per_epoch:,} in an epoch, {schedule.epochs:,} epochs"
    return "\n".join([*lines, total])
