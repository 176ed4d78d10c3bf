"""Configuration sections common to all systems: run, data, loop, optimiser, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sjepa.config.dataset import Dataset
from sjepa.config.values import Betas, Fraction, Section, folder_name
from sjepa.core.frames import FrameGeometry


class Hdf5(Section):
    sample_type: Literal["int16", "float32"] = Field(
        "int16",
        description="Sample type of buildh5ds: int16, or float32 (twice the size, no clipping).",
    )
    copies: int = Field(
        1,
        ge=1,
        le=100,
        description="Augmented copies stored per training clip, if dataset.augment.enabled.",
    )


class TrainLoop(Section):
    """Keys of `train` used by the training loop; a system adds its own."""

    epochs: int = Field(10, ge=1, description="Passes over the training set.")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Length of the run and of its schedule in optimiser steps, instead of epochs.",
    )
    batch_size: int = Field(8, ge=1, description="Clips in a micro-batch, per device.")
    max_batch_seconds: float | None = Field(
        None, gt=0, description="Length-bucketed micro-batches of at most this much padded audio instead, seconds."
    )
    probe_memory: bool = Field(
        False,
        description="Run the largest micro-batch of all phases before training, to detect out-of-memory early.",
    )
    grad_accum: int = Field(4, ge=1, description="Micro-batches in one optimiser step.")
    grad_clip_norm: float = Field(1.0, gt=0, description="Gradient clipping: maximum global norm.")
    log_every: int = Field(10, ge=1, description="Log metrics every this many optimiser steps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Mixed precision; auto: bf16 where the hardware is faster in it, else fp32.",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the transformer layers: faster on GPUs; the first updates take minutes.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Gradient checkpointing of the transformer layers: less memory, more compute.",
    )
    devices: int = Field(
        1,
        ge=1,
        description="Processes per machine, one per GPU; under torchrun or SLURM leave at 1 (taken from the launcher).",
    )
    num_nodes: int = Field(1, ge=1, description="Number of machines; under torchrun or SLURM leave at 1.")
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="Data parallelism: ddp (auto) replicates everything, fsdp shards weights, "
        "gradients and optimiser state, deepspeed (ZeRO) shards the optimiser state.",
    )
    zero_stage: Literal[1, 2] = Field(1, description="strategy deepspeed: ZeRO stage; 2 shards the gradients too.")

    gradient_exchange: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision of gradients in the all-reduce of ddp; bf16: half the bytes, gradients are rounded.",
    )

    @model_validator(mode="after")
    def _exchanged(self) -> TrainLoop:
        if self.gradient_exchange != "fp32" and self.strategy not in ("auto", "ddp"):
            raise ValueError(
                f"gradient_exchange: {self.gradient_exchange} goes with strategy ddp, not with {self.strategy}"
            )
        return self

    @model_validator(mode="after")
    def _compiled(self) -> TrainLoop:
        if self.compile and self.strategy not in ("auto", "ddp"):
            raise ValueError(f"compile: true goes with strategy ddp, not with {self.strategy}")
        return self


class AdamW(Section):
    """Keys of `optimizer` shared by all optimisers of a run."""

    name: Literal["adamw"] = Field("adamw", description="AdamW; weight decay applies to matrices only.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(1e-3, ge=0, description="Decoupled weight decay.")
    betas: Betas = Field((0.9, 0.99), description="Decay rates of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")


class Curve(Section):
    """Learning-rate schedule within a phase."""

    kind: Literal["cosine", "constant"] = Field("cosine", description="Learning-rate schedule after warm-up.")
    warmup_steps: float = Field(
        5000, ge=0, description="Optimiser steps of linear warm-up; below 1, a fraction of the phase."
    )
    min_ratio: Fraction = Field(0.1, description="Final learning rate of each cosine phase, as a fraction of its peak.")

    @model_validator(mode="after")
    def _whole_steps(self) -> Curve:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps {self.warmup_steps:g} is neither whole nor a fraction below 1")
        return self


class Checkpoint(Section):
    dir: str | None = Field(None, description="Folder of the checkpoints; null: inside the run's folder.")
    max_checkpoint: int = Field(5, ge=1, description="Checkpoints kept; the oldest are deleted first.")
    resume: bool = Field(False, description="Resume the highest-numbered run of this name that has a checkpoint.")
    ckpt_step: int = Field(0, ge=0, description="Also save every this many optimiser steps; 0: only after each epoch.")


class Health(Section):
    on_collapse: Literal["warn", "stop"] = Field("warn", description="Action on representation collapse.")


class Logging(Section):
    plots: bool = Field(True, description="Draw a plot of every metric (plotes/history_*.jpg).")
    report: bool = Field(True, description="Write report.html at the end: the run in one page.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events (extra: sjepa[tensorboard]).")
    wandb: Literal["off", "offline", "online"] = Field(
        "off",
        description="Also log to Weights & Biases (extra: sjepa[wandb]); offline: into the run's folder, for wandb sync.",
    )
    trackio: bool = Field(False, description="Also log to Trackio's local store (extra: sjepa[trackio]).")

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads off as false


class RunConfig(Section):
    """Root of the configuration; a system extends its sections and adds others."""

    run_name: Annotated[str, AfterValidator(folder_name)] = Field(
        "sjepa_base", description="Name of the run: its folder under runs_root."
    )
    runs_root: str = Field("runs", description="Folder of all runs.")
    device: Literal["cpu", "cuda", "rocm", "mps", "auto"] = Field(
        "cpu", description="Device; an error if not available."
    )
    seed: int = Field(0, ge=0, description="Random seed.")
    dataset: Dataset
    hdf5: Hdf5 = Hdf5()
    train: TrainLoop = TrainLoop()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()
    logging: Logging = Logging()

    @property
    def cache_folder(self) -> Path:
        """Where scans are cached whose data folder cannot be written."""
        return Path(self.runs_root) / self.run_name / "cache"

    @property
    def geometry(self) -> FrameGeometry:
        """Frame geometry of the encoder."""
        raise NotImplementedError
