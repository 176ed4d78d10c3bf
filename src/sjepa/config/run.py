"""The sections that every system's configuration has: run, data, loop, optimiser, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sjepa.config.dataset import Dataset
from sjepa.config.values import Betas, Fraction, Section, folder_name
from sjepa.core.frames import FrameGeometry


class Hdf5(Section):
    sample_type: Literal["int16", "float32"] = Field(
        "int16", description="What buildh5ds stores: 16-bit samples, or float32 (twice the size, no full scale)."
    )
    copies: int = Field(
        1, ge=1, le=100, description="Augmented copies of each training clip, if dataset.augment.enabled asks for them."
    )


class TrainLoop(Section):
    """What the training loop reads of `train`; a system adds its own keys."""

    epochs: int = Field(10, ge=1, description="Passes over the training set.")
    max_steps: int | None = Field(None, ge=1, description="Stop, and plan the schedule, by optimiser steps instead.")
    batch_size: int = Field(8, ge=1, description="Clips in a micro-batch, per device.")
    max_batch_seconds: float | None = Field(
        None, gt=0, description="Length-bucketed micro-batches of at most this much padded audio instead, seconds."
    )
    probe_memory: bool = Field(
        False,
        description="Run the largest micro-batch of all phases before training, so that memory runs out then or never.",
    )
    grad_accum: int = Field(4, ge=1, description="Micro-batches in one optimiser step.")
    grad_clip_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    log_every: int = Field(10, ge=1, description="Optimiser steps between two lines of figures.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the network; auto: bf16 where the hardware multiplies it natively, else fp32.",
    )
    compile: bool = Field(
        False,
        description="Compile the transformer layers (torch.compile): pays off on GPUs; the first updates take minutes.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute the insides of transformer layers again in the backward pass, to save memory."
    )
    devices: int = Field(
        1,
        ge=1,
        description="Processes on each machine, one per GPU; 1 under torchrun or SLURM takes what they started.",
    )
    num_nodes: int = Field(1, ge=1, description="Machines; likewise.")
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="What each of several devices keeps: ddp (auto) everything, fsdp a shard of weights, gradients and "
        "moments, deepspeed a shard of the moments.",
    )

    @model_validator(mode="after")
    def _compiled(self) -> TrainLoop:
        if self.compile and self.strategy not in ("auto", "ddp"):
            raise ValueError(f"compile: true goes with strategy ddp, not with {self.strategy}")
        return self


class AdamW(Section):
    """What every optimiser of a run reads of `optimizer`."""

    name: Literal["adamw"] = Field("adamw", description="AdamW; weight decay acts on matrices only.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(1e-3, ge=0, description="Decoupled weight decay.")
    betas: Betas = Field((0.9, 0.99), description="Decay of the first and second moments.")


class Curve(Section):
    """The learning rate within a phase."""

    kind: Literal["cosine", "constant"] = Field("cosine", description="Shape of the rate after the warm-up.")
    warmup_steps: float = Field(
        5000, ge=0, description="Optimiser steps of linear warm-up; below 1, a fraction of the phase."
    )
    min_ratio: Fraction = Field(0.1, description="The cosine of each phase ends at this fraction of its peak.")

    @model_validator(mode="after")
    def _whole_steps(self) -> Curve:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps {self.warmup_steps:g} is neither whole nor a fraction below 1")
        return self


class Checkpoint(Section):
    dir: str | None = Field(None, description="Folder of the checkpoints; null: inside the run's folder.")
    max_checkpoint: int = Field(5, ge=1, description="Checkpoints kept; the oldest are deleted first.")
    resume: bool = Field(False, description="Continue the highest-numbered run of this name that has a checkpoint.")
    ckpt_step: int = Field(0, ge=0, description="Also save every so many optimiser steps; 0: at epoch ends only.")


class Health(Section):
    on_collapse: Literal["warn", "stop"] = Field("warn", description="What a collapse of the representation does.")


class Logging(Section):
    tensorboard: bool = Field(False, description="Also write TensorBoard events (extra: sjepa[tensorboard]).")


class RunConfig(Section):
    """The root of a configuration; a system extends its sections and adds others."""

    run_name: Annotated[str, AfterValidator(folder_name)] = Field(
        "sjepa_base", description="Name of the run: its folder under runs_root."
    )
    runs_root: str = Field("runs", description="Folder of all runs.")
    device: Literal["cpu", "cuda", "rocm", "mps", "auto"] = Field(
        "cpu", description="Where to compute; asking for an absent one is an error."
    )
    seed: int = Field(0, ge=0, description="Key of every random draw.")
    dataset: Dataset
    hdf5: Hdf5 = Hdf5()
    train: TrainLoop = TrainLoop()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()
    logging: Logging = Logging()

    @property
    def geometry(self) -> FrameGeometry:
        """How samples become frames."""
        raise NotImplementedError

    @property
    def fewest_samples(self) -> int:
        """Of a clip in a batch: one frame to mask and one to see."""
        return self.geometry.samples(2)
