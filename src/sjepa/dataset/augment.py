"""Waveform augmentation. Of the encoder input only: noise or utterance mixing as in WavLM
[Augmentation Details], pitch shift and reverberation (Kharitonov et al. 2020, for CPC). Of encoder
input and targets alike: speed perturbation [Ko et al. 2015].

Throughout, `heard` is the encoder's input waveform and `clean` the one that targets are computed
from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from librosa import effects  # type: ignore[attr-defined,unused-ignore]
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from sjepa.dataset.audio import DecodeError, Waveform, resample
from sjepa.dataset.batch import Failure
from sjepa.dataset.clips import Clips

_PITCH_WINDOW = 512  # samples: 32 ms
_NOT_HEARD = ("sample_rate", "fewest_samples", "noise", "p_speed", "speed")
_DIRECT_DB = (0.0, 10.0)  # direct-to-reverberant energy ratio


class PartnerError(Exception):
    """The clip drawn for mixing cannot be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Augmentation:
    """Augmentation probabilities and ranges: levels in dB, pitch in semitones, RT60 in seconds.

    Each clip gets at most one of noise and mixing; independently a pitch shift and reverberation;
    and independently a speed factor, for clean and heard alike, unless fewer than `fewest_samples`
    would remain. `noise`: noise recordings, None: other clips. `never_clean`: redrawn until at
    least one augmentation other than speed applies."""

    sample_rate: int
    fewest_samples: int
    p_noise: float
    p_mix: float
    snr_db: tuple[float, float]
    ratio_db: tuple[float, float]
    noise: Clips | None = None
    p_pitch: float = 0.0
    pitch_semitones: tuple[float, float] = (-4.0, 4.0)
    p_reverb: float = 0.0
    reverb_seconds: tuple[float, float] = (0.2, 0.8)
    p_speed: float = 0.0
    speed: tuple[float, float] = (0.9, 1.1)
    never_clean: bool = False

    @property
    def probability(self) -> float:
        """Probability that the encoder input differs from the clean clip (apart from speed)."""
        return 1 - (1 - self.p_noise - self.p_mix) * (1 - self.p_pitch) * (1 - self.p_reverb)

    @property
    def settings(self) -> list[Any]:
        """Settings of the encoder input before speed perturbation, without the recordings."""
        return [getattr(self, entry.name) for entry in fields(self) if entry.name not in _NOT_HEARD]

    def always(self) -> Augmentation:
        """The same settings with `never_clean`."""
        return replace(self, never_clean=True)

    def __call__(self, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator) -> Waveform:
        """The augmented waveform, of the same length; `clean` itself if no augmentation was drawn.

        `position` is the clip's own among `partners`. Raises PartnerError if the drawn partner
        cannot be read.
        """
        draw, pitch, reverb = self._drawn(rng)
        while self.never_clean and draw >= self.p_mix + self.p_noise and not (pitch or reverb):
            draw, pitch, reverb = self._drawn(rng)
        heard = clean
        if pitch:
            heard = at_pitch(heard, float(rng.uniform(*self.pitch_semitones)), self.sample_rate)
        if reverb:
            samples = float(rng.uniform(*self.reverb_seconds)) * self.sample_rate
            heard = in_room(heard, samples, float(rng.uniform(*_DIRECT_DB)), rng)
        if draw < self.p_mix:
            return self._mixed(heard, position, partners, rng)
        if draw < self.p_mix + self.p_noise:
            return self._noisy(heard, position, partners, rng)
        return heard

    def paced(self, clean: Waveform, heard: Waveform, rng: np.random.Generator) -> tuple[Waveform, Waveform]:
        """Applies a random speed factor to both waveforms; slowed ones are truncated to their
        length."""
        if self.p_speed == 0 or rng.random() >= self.p_speed:
            return clean, heard
        speed = float(rng.uniform(*self.speed))
        if len(clean) / speed < self.fewest_samples + 1:
            return clean, heard
        paced = at_speed(clean, speed)
        return paced, paced if heard is clean else at_speed(heard, speed)

    def _drawn(self, rng: np.random.Generator) -> tuple[float, bool, bool]:
        """Uniform draw that selects noise, mixing or neither; whether to shift the pitch; whether
        to add reverberation."""
        return (
            rng.random(),
            self.p_pitch > 0 and rng.random() < self.p_pitch,
            self.p_reverb > 0 and rng.random() < self.p_reverb,
        )

    def _mixed(self, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator) -> Waveform:
        other = _other(partners.neighbours(position), position, rng)
        length = int(rng.integers(1, max(2, len(clean) // 2 + 1)))
        if other is None:
            return clean
        piece = _random_piece(partners, other, length, rng)
        at = int(rng.integers(0, len(clean) - len(piece) + 1))
        gain = mix_gain(clean, piece, ratio_db=float(rng.uniform(*self.ratio_db)))
        mixed = clean.copy()
        mixed[at : at + len(piece)] += gain * piece
        return mixed

    def _noisy(self, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator) -> Waveform:
        source = partners if self.noise is None else self.noise
        choices = partners.neighbours(position) if self.noise is None else np.arange(len(source))
        other = _other(choices, position if self.noise is None else -1, rng)
        if other is None:
            return clean
        # shorter noise is repeated
        noise = np.resize(_random_piece(source, other, len(clean), rng), len(clean))
        return clean + mix_gain(clean, noise, ratio_db=-float(rng.uniform(*self.snr_db))) * noise


def augmented(
    augmentation: Augmentation, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator
) -> tuple[Waveform, list[Failure]]:
    """The augmented clip; if the partner cannot be read, the clean clip and the failure."""
    try:
        return augmentation(clean, position, partners, rng), []
    except PartnerError as error:
        return clean, [Failure(error.name, error.reason, is_own=False)]


def at_pitch(clean: Waveform, semitones: float, sample_rate: int) -> Waveform:
    """Shifts pitch and formants by `semitones`; duration and timing are unchanged."""
    shifted = effects.pitch_shift(clean, sr=sample_rate, n_steps=semitones, n_fft=_PITCH_WINDOW, res_type="soxr_mq")
    return np.asarray(shifted, np.float32)


def at_speed(clip: Waveform, speed: float) -> Waveform:
    """Resamples by the factor `speed` (pitch changes too), truncated to the original length."""
    return resample(clip, speed, 1.0)[: len(clip)]


def in_room(clean: Waveform, samples: float, direct_db: float, rng: np.random.Generator) -> Waveform:
    """Convolves the clip with a synthetic impulse response: exponentially decaying noise with an
    RT60 of `samples` and a direct-to-reverberant ratio of `direct_db`. Length and power are
    unchanged."""
    times = np.arange(1, max(2, round(samples)))
    echoes = rng.standard_normal(len(times)) * 10 ** (-3 * times / samples)
    echoes *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(echoes**2))
    response = np.concatenate([[1.0], echoes])
    heard = fftconvolve(clean.astype(np.float64), response)[: len(clean)].astype(np.float32)
    return heard * mix_gain(clean, heard, ratio_db=0.0)


def mix_gain(clean: Waveform, other: Waveform, *, ratio_db: float) -> np.float32:
    """Gain that scales `other` to `ratio_db` relative to `clean` (mean power); 0 if `other` is
    silent."""
    clean_power, other_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (clean, other))
    return np.float32(np.sqrt(clean_power * 10 ** (ratio_db / 10) / other_power) if other_power > 0 else 0.0)


def _other(choices: NDArray[np.int64], own: int, rng: np.random.Generator) -> int | None:
    """A random element of `choices` other than `own` (−1: any), or None if there is none."""
    if len(choices) <= (own >= 0):
        return None
    drawn = int(choices[rng.integers(0, len(choices))])
    while drawn == own:
        drawn = int(choices[rng.integers(0, len(choices))])
    return drawn


def _random_piece(clips: Clips, position: int, length: int, rng: np.random.Generator) -> Waveform:
    available = int(clips.length_N[position])
    start = int(rng.integers(0, max(1, available - length + 1)))
    try:
        return clips.read(position, start=start, length=min(length, available))
    except DecodeError as error:
        raise PartnerError(clips.name(position), str(error)) from None
