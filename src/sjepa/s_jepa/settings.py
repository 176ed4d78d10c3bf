"""The configuration of S-JEPA: every key beside those of every system, with its bounds, default and meaning.
`trainsjepa --help-config` prints these texts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sjepa.config.dataset import Dataset
from sjepa.config.run import AdamW, Curve, RunConfig, TrainLoop
from sjepa.config.values import EpochOrFraction, Section
from sjepa.core.frames import SPEECH, FrameGeometry
from sjepa.s_jepa.tools import Dump, Evaluation, Export, Probe

_TWO_FRAMES_SECONDS = SPEECH.samples(2) / SPEECH.sample_rate


class Model(Section):
    size: Literal["tiny", "mini", "small", "base", "large"] = Field(
        "base", description="Named size (base: HuBERT, 6 layers)."
    )
    frontend: Literal["waveform", "logmel"] = Field(
        "waveform",
        description="What frames are made of: HuBERT's convolutions over the waveform, or log-mel bands, which need not be "
        "learnt (for hours of audio rather than thousands).",
    )
    mel_statistics: Literal["corpus", "clip", "both"] = Field(
        "both",
        description="logmel: whose mean and deviation the bands are freed of: corpus, the training set's, kept in the "
        "weights; clip, each clip's own; both: a frame has either form, since the first tells who speaks and the second "
        "what is said.",
    )
    predictor_positions: Literal["learned", "convolution"] = Field(
        "learned",
        description="How the predictor knows where a frame is: learned, a vector for each frame number, which takes a large "
        "corpus (the paper's); convolution, over its neighbours as in the encoder, which an hour can learn.",
    )
    overrides: dict[str, Any] = Field({}, description="Single hyperparameters instead of the size's own (see below).")


class Masking(Section):
    mask_ratio: float = Field(0.65, gt=0, lt=1, description="Fraction of a clip's frames that is masked.")
    mask_length: int = Field(10, ge=1, description="Length of one masked span, frames.")


class Train(TrainLoop):
    freeze: int | None = Field(
        None,
        ge=0,
        description="So many lower encoder layers keep the weights they start with, and all that lies below them (0: that "
        "alone); null: everything trains.",
    )
    phase: Literal[1, 2] = Field(
        1, description="Phase the run starts in: 1 frozen GMM on MFCC, 2 online GMM on the EMA encoder."
    )
    spectral_warmup: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="For this fraction of the run a waveform frontend is also taught the log-mel bands of each frame, since "
        "a spectrum is what little audio takes longest to find.",
    )
    use_visible_loss: bool = Field(True, description="The loss also covers frames that were not masked.")
    visible_weight: float = Field(
        1.0, gt=0, le=1, description="Weight of a visible frame in the loss, where a masked one has 1."
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
        description="Each encoder layer trains at this share of the rate of the one above it: below 1 to adapt weights that "
        "are good already.",
    )


class Scheduler(Curve):
    rewarm_on_phase2: bool = Field(
        True, description="Phase 2 has a warm-up and a decay of its own; false: one curve over the whole run."
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
        description="Before frames are clustered: clip takes each clip's mean and deviation out of every feature, and with "
        "them much of speaker and channel; speaker, those of all that a speaker says (a manifest's field speaker; clips of "
        "others are normalised by themselves), as measured when the mixture is fitted.",
    )
    context: int = Field(
        0, ge=0, le=20, description="Phase 1: frames on each side that are spliced to a frame (with gmm.dimensions)."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Phase 1: directions that the mixture is over, by a linear discriminant analysis on a first clustering; "
        "null: the features as they are.",
    )
    dimensions_phase2: int | None = Field(None, ge=1, description="Phase 2: the same of the encoder's layer.")
    projection_phase2: Literal["clusters", "predictions"] = Field(
        "clusters",
        description="What those directions tell apart: clusters of the layer itself; or the components that the network, "
        "trained so far, predicts of each frame (a run that starts in phase 2 begins with clusters).",
    )
    entropy_bits: float | None = Field(
        None,
        gt=0,
        description="Phase 1: mean entropy of the targets, reached by a temperature when the mixture is fitted; null: the "
        "mixture's own posteriors.",
    )
    entropy_bits_phase2: float | None = Field(
        None,
        gt=0,
        description="Phase 2: the same. A mixture in hundreds of dimensions else says one component and nothing more.",
    )
    kmeans_iters: int = Field(5, ge=1, description="k-means passes before EM.")
    em_iters: int = Field(20, ge=0, description="EM iterations.")
    fit_frames: int = Field(200000, ge=10, description="Frames, uniform over the training set, to fit on.")
    path: str | None = Field(
        None, description="A fitted GMM (gmm.pt) to load for the phase the run starts in, instead of fitting."
    )
    online: bool = Field(False, description="Start in phase 2, as train.phase: 2.")
    param_decay: float = Field(0.999, ge=0, lt=1, description="Online GMM: share of the old parameters at each step.")
    ema_layer: int = Field(
        2,
        description="Encoder layer the online GMM reads first; negative counts from the top. Not given: the third layer, or "
        "the top one of fewer.",
    )
    auto_layer: bool = Field(True, description="Let effective rank choose that layer as training goes on.")
    layer_check_every: int = Field(10000, ge=1, description="Optimiser steps between two choices.")
    refit_on_switch: bool = Field(False, description="Fit the GMM anew when another layer is chosen.")
    erank_decay: float = Field(0.9, ge=0, lt=1, description="Smoothing of the effective rank across checks.")
    hold_steps: float | None = Field(
        None,
        gt=0,
        description="Phase 2 in rounds: the EMA encoder and the mixture stay as they are for so many optimiser steps (up to "
        "1: a fraction of phase 2), then a new copy is taken, a new mixture fitted and the head renewed; null: both follow "
        "at every step, as in the paper.",
    )
    ema_decay_fast: float = Field(0.999, ge=0, le=1, description="First decay of the EMA encoder.")
    ema_decay_slow: float = Field(0.9999, ge=0, le=1, description="The decay it alternates with.")
    ema_switch_every: int = Field(20000, ge=1, description="Optimiser steps between the two.")

    @model_validator(mode="after")
    def _rounds(self) -> GMM:
        if self.hold_steps is not None and self.hold_steps > 1 and self.hold_steps != int(self.hold_steps):
            raise ValueError(f"hold_steps: {self.hold_steps:g} is neither whole nor a fraction up to 1")
        return self


class Best(Section):
    metric: Literal["kl", "top1", "entropy_bits", "pitch_match"] = Field(
        "kl",
        description="Validation metric that chooses best.pt: the best of the last phase; with pitch_match, the share of "
        "frames whose features are found again at another pitch, which compares across phases, the best of the run.",
    )


class SpeechData(Dataset):
    sample_rate: int = Field(SPEECH.sample_rate, description="Samples per second; every file is brought to it.")

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
    """What the five commands read."""

    init_weights: str | None = Field(
        None,
        description="Weights to start from, to evaluate or to export (best.pt); to start from and to probe, also a Hugging "
        "Face HuBERT folder.",
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
