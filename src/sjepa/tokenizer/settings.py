"""The configuration of the tokenizer: keys in addition to those common to all systems."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sjepa.config.dataset import Augment, Dataset
from sjepa.config.run import AdamW, Checkpoint, Curve, RunConfig, TrainLoop
from sjepa.config.values import Betas, Fraction, Paths, Section, WholeNumbers
from sjepa.core.frames import FrameGeometry, padded_geometry
from sjepa.tokenizer.sizes import hyperparameters

UNTRAINED = "untrained"  # of decoder.encoder


class Model(Section):
    size: Literal["smoke", "tiny", "speech", "seed"] = Field(
        "seed",
        description="Named size: smoke (tests), tiny (16 kHz, 50 Hz), speech (24 kHz, 12.5 Hz), seed (24 kHz, 2.5 Hz).",
    )
    overrides: dict[str, Any] = Field({}, description="Hyperparameters that replace those of the size (see below).")


class Mask(Section):
    ratio: float = Field(0.5, gt=0, lt=1, description="Fraction of a clip's frames that is masked.")
    longest: int | None = Field(
        None,
        ge=2,
        description="Longest masked span, frames (the shortest is 2); null: a quarter of the clip, at least 4. At 50 frames "
        "per second about 10: what is said cannot be guessed across a second.",
    )
    at: Literal["input", "output"] = Field(
        "input",
        description="Where masked frames are hidden: input, the encoder hears silence there; output, only the "
        "predictor does not see them (the reference's way, which leaks).",
    )


class Target(Section):
    ema_start: Fraction = Field(0.996, description="EMA decay of the target encoder at the start of the run.")
    ema_end: Fraction = Field(0.9999, description="EMA decay at the end, reached by a half cosine.")
    normalise: Literal["none", "update", "clip"] = Field(
        "update",
        description="Targets have zero mean and unit deviation per dimension: update, over the frames of an update; clip, "
        "over those of each clip, which removes speaker and channel; none, as they are.",
    )


class TokTrain(TrainLoop):
    stage: Literal["train_jepa", "train_decoder"] = Field(
        "train_jepa",
        description="train_jepa: the encoder, without labels; train_decoder: from its quantised features back to audio.",
    )
    spectral_warmup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of the run with an auxiliary log-mel regression from the convolutions, "
        "which are slow to learn spectra from little audio.",
    )
    spectral_context: float = Field(
        0.0,
        ge=0,
        description="With spectral_warmup: the features of a visible frame also give the log-mel bands of frames (hidden "
        "ones too) up to so many seconds around it.",
    )
    ds_config: str | dict[str, Any] | None = Field(
        None,
        description="A DeepSpeed configuration (JSON file), whose values replace keys of this one: "
        "batch, precision, clipping, ZeRO stage, optimizer, scheduler.",
    )
    epochs: int = Field(20, ge=1, description="Passes over the training set.")
    grad_accum: int = Field(1, ge=1, description="Micro-batches in one optimiser step.")


class Decoder(Section):
    """Stage 2."""

    encoder: str | None = Field(
        None,
        description="Weights of stage 1: a weights file, a file or folder of ckpt2pt, or a run folder; null: those in the "
        "folder of the run's name; untrained: random weights, to compare with.",
    )
    train_encoder: bool = Field(
        False, description="The encoder learns from the reconstruction, too, through the quantiser (straight-through)."
    )
    levels: WholeNumbers = Field(
        (4, 4, 4, 4), description="Levels of the quantiser over equal parts of the dimensions."
    )
    group: int = Field(7, ge=1, description="Dimensions of a token.")
    whiten: bool = Field(
        True,
        description="Features are centred and decorrelated by statistics of the training set before they are quantised, "
        "so that tokens use their vocabulary.",
    )
    waveform_weight: float = Field(1.0, ge=0, description="Weight of the mean absolute error of the waveform.")
    spectral_weight: float = Field(2.0, ge=0, description="Weight of the multi-resolution STFT loss.")
    mel_weight: float = Field(0.0, ge=0, description="Weight of the mel distance.")
    gan_weight: float = Field(0.1, ge=0, description="Weight of adversarial loss and feature matching.")
    disc_start_step: int = Field(5000, ge=0, description="Update from which the discriminators take part.")
    stft_discriminator: bool = Field(False, description="Also discriminators of complex spectra.")
    sample_wav: str | None = Field(None, description="Audio that is reconstructed now and then; null: a test clip.")
    sample_every: int = Field(500, ge=1, description="Updates between two reconstructions.")


class TokCheckpoint(Checkpoint):
    shards: bool = Field(
        False,
        description="Also write every checkpoint in DeepSpeed's layout, to jepa_encoder_ds or decoder_ds in the folder of "
        "the run's name (the default with --out_dir); a run is resumed from it if its own are lost; ckpt2pt converts it.",
    )


class TokOptimizer(AdamW):
    lr: float = Field(1.5e-4, gt=0, description="Peak learning rate.")
    betas: Betas = Field((0.8, 0.99), description="Decay rates of the first and second moments.")


class TokCurve(Curve):
    warmup_steps: float = Field(
        0.05, ge=0, description="Optimiser steps of linear warm-up; below 1, a fraction of the run."
    )
    deepspeed: dict[str, Any] | None = Field(
        None, description="Scheduler of train.ds_config: {type, params}; replaces the other keys of this section."
    )


class TokAugment(Augment):
    enabled: bool = Field(False, description="Augment the encoder input; of the targets, only the speed changes.")


class TokData(Dataset):
    sample_rate: int = Field(24000, ge=1000, description="Sample rate, Hz (not given: that of the size).")
    test_path: Paths | None = Field(None, description="As for trainsjepa; null: part of train_path is held out.")
    val_prob: float = Field(1.0, gt=0, le=1, description="Validation is this fraction of the test set, drawn by seed.")
    augment: TokAugment = TokAugment()


class TokConfig(RunConfig):
    """The configuration of the tokenizer's commands."""

    run_name: str = Field("tokenizer", description="Name of the run: its folder under runs_root.")
    device: Literal["cpu", "cuda", "rocm", "mps", "auto"] = Field(
        "auto", description="Device; auto: a GPU if there is one. An error if not available."
    )
    dataset: TokData = TokData()
    model: Model = Model()
    mask: Mask = Mask()
    target: Target = Target()
    decoder: Decoder = Decoder()
    train: TokTrain = TokTrain()
    checkpoint: TokCheckpoint = TokCheckpoint()
    optimizer: TokOptimizer = TokOptimizer()
    scheduler: TokCurve = TokCurve()

    @property
    def geometry(self) -> FrameGeometry:
        hop = hyperparameters(self.model.size, self.model.overrides).hop
        return padded_geometry(self.dataset.sample_rate, hop)
