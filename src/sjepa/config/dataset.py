"""The keys of `dataset`: what is read, how it is cut, and what the encoder hears of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sjepa.config.values import Corpora, Fraction, Paths, Range, Section


class Augment(Section):
    enabled: bool = Field(
        True, description="Corrupt the waveform that the encoder sees (of the one that targets see, only the speed)."
    )
    p_noise: Fraction = Field(0.25, description="Probability that a clip gets noise over its whole length.")
    p_mix: Fraction = Field(0.25, description="Probability that a slice of another clip is mixed in.")
    snr_noise: Range = Field((-5.0, 20.0), description="Signal-to-noise ratio of the noise, dB [low, high].")
    ratio_mix: Range = Field((-5.0, 5.0), description="Energy of the mixed-in slice over the clip's, dB [low, high].")
    p_pitch: Fraction = Field(0.0, description="Probability that a clip is heard at another pitch, formants and all.")
    pitch_semitones: Range = Field((-4.0, 4.0), description="By how much, semitones [low, high].")
    p_reverb: Fraction = Field(0.0, description="Probability that a clip is heard in a room.")
    reverb_seconds: Range = Field(
        (0.2, 0.8), description="Time in which its echoes fall by 60 dB, seconds [low, high]."
    )
    p_speed: Fraction = Field(
        0.0, description="Probability that a clip is played faster or slower, for targets and encoder alike."
    )
    speed: Range = Field((0.9, 1.1), description="How many times as fast [low, high]; a slower clip loses its end.")
    noise_path: Paths | None = Field(
        None, description="Recordings to take noise from, in any form train_path takes; null: other clips."
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
    split: str = Field("train", description="Split that an hf:// path means unless it says ?split=….")
    config: str | None = Field(None, description="Configuration (subset) of the data set.")
    audio_field: str = Field("audio", description="Field with the audio; dots lead into nested fields.")
    speaker_field: str | None = Field(None, description="Field with the speaker, kept as a label.")
    duration_field: str | None = Field(None, description="Field with the duration, kept as a label.")
    streaming: bool = Field(
        False, description="Train from train_path (one hf:// address) as it comes over the line, nothing stored."
    )
    rows: int | None = Field(None, ge=1, description="Rows of the stream, where the data set does not say.")
    shuffle_buffer: int = Field(1000, ge=1, description="Rows of the stream, encoded, that change places in memory.")
    kept_clips: int = Field(
        1000,
        ge=1,
        description="Clips of the stream that are kept in the run's cache folder: to fit mixtures and rank layers on, and "
        "to mix in.",
    )


class Dataset(Section):
    use_hdf5: bool = Field(False, description="Read train_h5 and test_h5 instead of train_path and test_path.")
    scan: bool | Literal["full", "header"] = Field(
        True,
        alias="validate",
        description="Check every file once before training: true decodes its header, start and end; full every sample; "
        "header the header alone; false trusts an existing cache as it is.",
    )
    train_path: Corpora = Field(
        "data/train.zip",
        description="Folder, .zip, .tar, .tar.gz, .h5, manifest (.jsonl, .tsv), glob of these, or a list of any of them; "
        "hf://NAME of the Hugging Face library; a list of {path, weight}, of which an epoch draws in these proportions.",
    )
    shards_at_once: int | None = Field(
        None,
        ge=1,
        description="Shuffle the sources of train_path and go through this many at a time, each batch from one of them: for "
        "network storage; best a multiple of processes × num_workers. null: shuffle everything.",
    )
    test_path: Paths = Field("data/test.zip", description="The same for the test set; validation is a part of it.")
    train_h5: str = Field("data/train.h5", description="HDF5 file of the training set, which buildh5ds makes.")
    test_h5: str = Field("data/test.h5", description="HDF5 file of the test set.")
    max_train_samples: int | None = Field(
        None, ge=1, description="Use this many training clips (drawn by seed); null: all."
    )
    max_test_samples: int | None = Field(None, ge=1, description="Use this many test clips (drawn by seed); null: all.")
    val_prob: float = Field(0.5, gt=0, le=1, description="Validation is this fraction of the test set, drawn by seed.")
    sample_rate: int = Field(ge=1, description="Samples per second; every file is brought to it.")
    max_seconds: float = Field(15.0, gt=0, description="Longest piece of a clip in a batch, seconds.")
    min_seconds: float = Field(0.1, gt=0, description="Shorter clips are dropped, seconds (two frames at the least).")
    long_clips: Literal["crop", "windows"] = Field(
        "crop", description="Clips over max_seconds: a new random crop each epoch, or windows that tile the clip."
    )
    window_overlap: float = Field(0.5, ge=0, lt=1, description="Overlap of neighbouring windows, as a fraction.")
    num_workers: int = Field(2, ge=0, description="Processes that decode audio; 0: the training process does.")
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
