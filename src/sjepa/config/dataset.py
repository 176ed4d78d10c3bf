"""Schema of `dataset`: sources, clip lengths, loading and augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sjepa.config.values import Corpora, Fraction, Paths, Range, Section


class Augment(Section):
    enabled: bool = Field(True, description="Augment the encoder input; of the targets, only the speed changes.")
    p_noise: Fraction = Field(0.25, description="Probability of adding noise to a clip.")
    p_mix: Fraction = Field(0.25, description="Probability of mixing in a segment of another clip.")
    snr_noise: Range = Field((-5.0, 20.0), description="Signal-to-noise ratio of the noise, dB [low, high].")
    ratio_mix: Range = Field(
        (-5.0, 5.0), description="Energy ratio of the mixed-in segment to the clip, dB [low, high]."
    )
    p_pitch: Fraction = Field(0.0, description="Probability of a pitch shift (formants are shifted too).")
    pitch_semitones: Range = Field((-4.0, 4.0), description="Pitch shift, semitones [low, high].")
    p_reverb: Fraction = Field(0.0, description="Probability of reverberation.")
    reverb_seconds: Range = Field((0.2, 0.8), description="Reverberation time (RT60), seconds [low, high].")
    p_speed: Fraction = Field(
        0.0, description="Probability of a speed perturbation, of targets and encoder input alike."
    )
    speed: Range = Field((0.9, 1.1), description="Speed factor [low, high]; slowed clips are truncated.")
    noise_path: Paths | None = Field(
        None, description="Noise recordings, in any format of train_path; null: use other clips."
    )

    @model_validator(mode="after")
    def _possible(self) -> Augment:
        if self.reverb_seconds[0] < 0.01 or self.reverb_seconds[1] > 10:
            raise ValueError(f"reverb_seconds: {list(self.reverb_seconds)} is not between 0.01 and 10")
        if max(map(abs, self.pitch_semitones)) > 24:
            raise ValueError(f"pitch_semitones: {list(self.pitch_semitones)} is not between -24 and 24")
        if self.speed[0] < 0.5 or self.speed[1] > 2:
            raise ValueError(f"speed: {list(self.speed)} is not between 0.5 and 2")
        return self

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Augment:
        if self.p_noise + self.p_mix > 1:
            raise ValueError(
                f"p_noise + p_mix = {self.p_noise + self.p_mix:g} is more than 1 (a clip gets at most one)"
            )
        return self


class Hub(Section):
    split: str = Field("train", description="Default split of hf:// addresses without ?split=….")
    config: str | None = Field(None, description="Configuration (subset) of the data set.")
    audio_field: str = Field("audio", description="Field with the audio; dots separate nested fields.")
    speaker_field: str | None = Field(None, description="Field with the speaker, kept as a label.")
    duration_field: str | None = Field(None, description="Field with the duration, kept as a label.")
    streaming: bool = Field(
        False,
        description="Stream train_path (one hf:// address) while training, without storing it.",
    )
    rows: int | None = Field(None, ge=1, description="Number of rows of the stream, if the data set does not state it.")
    shuffle_buffer: int = Field(1000, ge=1, description="Size of the shuffle buffer, rows (encoded audio).")
    kept_clips: int = Field(
        1000,
        ge=1,
        description="Clips of the stream stored in the run's cache folder, for fitting mixtures, "
        "ranking layers and mixing in.",
    )


class Dataset(Section):
    use_hdf5: bool = Field(False, description="Read train_h5 and test_h5 instead of train_path and test_path.")
    scan: bool | Literal["full", "header"] = Field(
        True,
        alias="validate",
        description="Validate every file once before training: true decodes header, start and end; "
        "full decodes all samples; header reads headers only; false uses an existing cache "
        "without checking it.",
    )
    train_path: Corpora = Field(
        "data/train.zip",
        description="Folder, .zip, .tar, .tar.gz, .h5, manifest (.jsonl, .tsv), glob of these, or a list of any of them; "
        "hf://NAME of the Hugging Face library; a list of {path, weight}: mixing proportions.",
    )
    shards_at_once: int | None = Field(
        None,
        ge=1,
        description="Shuffle the sources of train_path and read this many at a time, each batch "
        "from one source: for network storage; best a multiple of processes × num_workers. "
        "null: shuffle over all sources.",
    )
    test_path: Paths | None = Field(
        "data/test.zip",
        description="As train_path, for the test set, which the validation set is drawn from; null: part of train_path is "
        "held out.",
    )
    held_out: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="test_path null: fraction of train_path held out, by duration (whole speakers where the manifest names "
        "them).",
    )
    train_h5: str = Field("data/train.h5", description="HDF5 file of the training set, made by buildh5ds.")
    test_h5: str = Field("data/test.h5", description="HDF5 file of the test set.")
    max_train_samples: int | None = Field(
        None, ge=1, description="Use this many training clips (drawn by seed); null: all."
    )
    max_test_samples: int | None = Field(None, ge=1, description="Use this many test clips (drawn by seed); null: all.")
    val_prob: float = Field(0.5, gt=0, le=1, description="Validation is this fraction of the test set, drawn by seed.")
    sample_rate: int = Field(ge=1, description="Sample rate, Hz; audio is resampled to it.")
    max_seconds: float = Field(15.0, gt=0, description="Maximum length of a clip in a batch, seconds.")
    min_seconds: float = Field(
        0.1,
        gt=0,
        description="Minimum clip length, seconds; shorter clips are dropped (at least two frames).",
    )
    long_clips: Literal["crop", "windows"] = Field(
        "crop", description="Clips over max_seconds: a new random crop each epoch, or windows that tile the clip."
    )
    window_overlap: float = Field(0.5, ge=0, lt=1, description="Overlap of neighbouring windows, as a fraction.")
    num_workers: int = Field(2, ge=0, description="Data loading worker processes; 0: decode in the training process.")
    augment: Augment = Augment()
    hf: Hub = Hub()

    @model_validator(mode="after")
    def _lengths(self) -> Dataset:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}")
        if self.shards_at_once is not None and any(isinstance(item, dict) for item in self.train_path):
            raise ValueError("shards_at_once does not go with weights in train_path")
        if self.hf.streaming:
            if not isinstance(self.train_path, str) or not self.train_path.startswith("hf://"):
                raise ValueError("hf.streaming needs train_path to be one hf:// address")
            if self.long_clips != "crop" or self.shards_at_once is not None or self.use_hdf5:
                raise ValueError(
                    "hf.streaming goes with long_clips: crop, and neither with shards_at_once nor use_hdf5"
                )
        return self
