"""The configuration of S-JEPA: keys in addition to those common to all systems, with bounds,
default and description. `trainsjepa --help-config` prints these texts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sjepa.config.dataset import Dataset
from sjepa.config.run import AdamW, Curve, RunConfig, TrainLoop
from sjepa.config.values import EpochOrFraction, Section
from sjepa.core.frames import SPEECH, FrameGeometry
from sjepa.s_jepa.tools import Dump, Evaluation, Export, Probe

_TWO_FRAMES_SECONDS = SPEECH.fewest_samples / SPEECH.sample_rate


class Model(Section):
    size: Literal["tiny", "mini", "small", "base", "large"] = Field(
        "base", description="Named size (base: HuBERT, 6 layers)."
    )
    frontend: Literal["waveform", "logmel"] = Field(
        "waveform",
        description="Frontend: waveform, HuBERT's convolutions; logmel, log-mel bands, which need "
        "no training (for a few hours of audio rather than thousands).",
    )
    mel_statistics: Literal["corpus", "clip", "both"] = Field(
        "both",
        description="logmel: mean and variance normalisation of the bands: corpus, statistics of "
        "the training set, stored in the weights; clip, statistics of each clip; both, the two "
        "concatenated: the first keeps speaker information, the second removes most of it.",
    )
    predictor_positions: Literal["learned", "convolution"] = Field(
        "learned",
        description="Position embedding of the predictor: learned, absolute (as in the paper; "
        "needs a large corpus); convolution, as in the encoder, which an hour of audio suffices to "
        "train.",
    )
    overrides: dict[str, Any] = Field(
        {},
        description="Hyperparameters that replace those of the size (see below).",
    )


class Masking(Section):
    mask_ratio: float = Field(0.65, gt=0, lt=1, description="Fraction of a clip's frames that is masked.")
    mask_length: int = Field(10, ge=1, description="Length of one masked span, frames.")


class Train(TrainLoop):
    freeze: int | None = Field(
        None,
        ge=0,
        description="Number of lowest encoder layers to freeze, together with frontend, projection "
        "and positions (0: only these); null: nothing is frozen.",
    )
    phase: Literal[1, 2] = Field(
        1, description="Phase the run starts in: 1 frozen GMM on MFCC, 2 online GMM on the EMA encoder."
    )
    spectral_warmup: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the run with an auxiliary log-mel regression loss on a waveform "
        "frontend, which is slow to learn spectra from little audio.",
    )
    use_visible_loss: bool = Field(True, description="The loss also covers frames that were not masked.")
    visible_weight: float = Field(
        1.0, gt=0, le=1, description="Loss weight of a visible frame, relative to a masked one."
    )
    phase2_start_epoch: EpochOrFraction = Field(
        -1,
        description="Epoch of the run at which phase 2 starts; below 1: this fraction of the run (at the end of an epoch, "
        "if one is near); -1: never.",
    )
    phase2_start_step: int | None = Field(None, ge=1, description="The same in optimiser steps.")
    masked_only_epoch: EpochOrFraction = Field(
        -1,
        description="Epoch of the run, once in phase 2, from which visible loss and augmentation are off; below 1: this "
        "fraction of the run; -1: never.",
    )
    masked_only_step: int | None = Field(None, ge=1, description="The same in optimiser steps.")


class Optimizer(AdamW):
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise learning-rate decay: rate of each encoder layer relative to the "
        "one above; below 1 to adapt pretrained weights.",
    )


class Scheduler(Curve):
    rewarm_on_phase2: bool = Field(
        True,
        description="Separate warm-up and decay for phase 2; false: one curve over the whole run.",
    )
    phase2_lr_ratio: float = Field(
        1.0, gt=0, description="Peak rate of phase 2 over optimizer.lr; not used where one curve spans both phases."
    )


class GMM(Section):
    num_clusters: int = Field(
        100, ge=2, le=100_000, description="Components of the mixture in the phase the run starts in."
    )
    num_clusters_phase2: int = Field(
        500, ge=2, le=100_000, description="Components after a switch to phase 2 within the run."
    )
    normalise: Literal["none", "clip", "speaker"] = Field(
        "none",
        description="Mean and variance normalisation of features before clustering: clip, per "
        "clip, which removes much of speaker and channel; speaker, per speaker (manifest field "
        "speaker; clips without known speaker: per clip), with statistics measured when the "
        "mixture is fitted.",
    )
    context: int = Field(
        0, ge=0, le=20, description="Phase 1: frames on each side that are spliced to a frame (with gmm.dimensions)."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Phase 1: dimensions after a linear discriminant analysis on a first "
        "clustering; null: no projection.",
    )
    dimensions_phase2: int | None = Field(
        None,
        ge=1,
        description="Phase 2: the same for the encoder layer.",
    )
    projection_phase2: Literal["clusters", "predictions"] = Field(
        "clusters",
        description="Classes of that discriminant analysis in phase 2: clusters, a clustering of "
        "the layer; predictions, the components predicted by the network (a run that starts in "
        "phase 2 begins with clusters).",
    )
    entropy_bits: float | None = Field(
        None,
        gt=0,
        description="Phase 1: mean entropy of the targets, set by a temperature when the mixture "
        "is fitted; null: no temperature.",
    )
    entropy_bits_phase2: float | None = Field(
        None,
        gt=0,
        description="Phase 2: the same. Without it, posteriors in hundreds of dimensions are nearly one-hot.",
    )
    kmeans_iters: int = Field(5, ge=1, description="k-means passes before EM.")
    em_iters: int = Field(20, ge=0, description="EM iterations.")
    fit_frames: int = Field(
        200000,
        ge=10,
        description="Frames to fit on, sampled uniformly from the training set.",
    )
    path: str | None = Field(
        None, description="A fitted GMM (gmm.pt) to load for the phase the run starts in, instead of fitting."
    )
    online: bool = Field(False, description="Start in phase 2, as train.phase: 2.")
    param_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Online GMM: EMA decay of its parameters.",
    )
    ema_layer: int = Field(
        2,
        description="Initial encoder layer of the online GMM; negative counts from the top. Not "
        "given: the third layer, or the top one if there are fewer.",
    )
    auto_layer: bool = Field(
        True,
        description="Select that layer by effective rank during training.",
    )
    layer_check_every: int = Field(10000, ge=1, description="Optimiser steps between layer checks.")
    refit_on_switch: bool = Field(False, description="Refit the GMM when the layer changes.")
    erank_decay: float = Field(0.9, ge=0, lt=1, description="Smoothing of the effective rank across checks.")
    hold_steps: float | None = Field(
        None,
        gt=0,
        description="Phase 2 in rounds: target encoder and mixture are frozen for this many "
        "optimiser steps (up to 1: a fraction of phase 2), then the encoder is copied, the mixture "
        "refitted and the head re-initialised; null: both are updated at every step, as in the "
        "paper.",
    )
    ema_decay_fast: float = Field(
        0.999,
        ge=0,
        le=1,
        description="Initial decay of the EMA encoder.",
    )
    ema_decay_slow: float = Field(
        0.9999,
        ge=0,
        le=1,
        description="Second decay, alternating with the fast one.",
    )
    ema_switch_every: int = Field(20000, ge=1, description="Optimiser steps between the two.")

    @model_validator(mode="after")
    def _rounds(self) -> GMM:
        if self.hold_steps is not None and self.hold_steps > 1 and self.hold_steps != int(self.hold_steps):
            raise ValueError(f"hold_steps: {self.hold_steps:g} is neither whole nor a fraction up to 1")
        return self


class Best(Section):
    metric: Literal["kl", "top1", "entropy_bits", "pitch_match"] = Field(
        "kl",
        description="Validation metric that selects best.pt, within the last phase; pitch_match "
        "(share of frames retrieved from a pitch-shifted copy) is comparable across phases and "
        "selects over the run.",
    )


class SpeechData(Dataset):
    sample_rate: int = Field(
        SPEECH.sample_rate,
        description="Sample rate, Hz; audio is resampled to it.",
    )

    @field_validator("sample_rate")
    @classmethod
    def _known_rate(cls, value: int) -> int:
        if value != SPEECH.sample_rate:
            raise ValueError(f"{value} is not {SPEECH.sample_rate}")
        return value

    @field_validator("max_seconds", "min_seconds")
    @classmethod
    def _two_frames(cls, value: float) -> float:
        if value < _TWO_FRAMES_SECONDS:
            raise ValueError(f"{value:g} is not at least {_TWO_FRAMES_SECONDS:g}")
        return value


class Config(RunConfig):
    """The configuration of all five commands."""

    init_weights: str | None = Field(
        None,
        description="Weights to start from, to evaluate or to export (best.pt); to start from, to probe and to export, also "
        "a Hugging Face HuBERT folder, or hf://OWNER/NAME on its Hub (extra: sjepa[hub]).",
    )
    hub: str | None = Field(
        None,
        description="exportw: also upload the Hugging Face folder to this repository of the Hub (OWNER/NAME; made private "
        "if it is not there; extra: sjepa[hub]).",
    )
    onnx_path: str = Field("runs/sjepa_base/export/encoder.onnx", description="ONNX file that exportw writes.")
    audio: str = Field("data/sample.wav", description="Clip that runinfer reads by default.")
    dataset: SpeechData = SpeechData()
    export: Export = Export()
    evaluation: Evaluation = Evaluation()
    probe: Probe = Probe()
    dump: Dump = Dump()
    model: Model = Model()
    masking: Masking = Masking()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    gmm: GMM = GMM()
    best: Best = Best()

    @property
    def geometry(self) -> FrameGeometry:
        return SPEECH
