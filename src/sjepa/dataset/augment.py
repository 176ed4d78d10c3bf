"""What the encoder hears in place of the clean clip: another voice or noise on it, in the style of WavLM
[Augmentation Details]; the clip at another pitch or in a room, as Kharitonov et al. 2020 do for CPC; and what targets
and encoder both hear: the clip faster or slower [Ko et al. 2015]."""

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
_DIRECT_DB = (0.0, 10.0)  # energy of the direct sound over that of all echoes


class PartnerError(Exception):
    """The clip that was drawn to be mixed in cannot be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges: levels in dB, pitch in semitones, reverberation time in seconds. A clip gets noise,
    another voice or neither, and independently of that another pitch, a room, both or neither; and independently of
    that, clean and heard alike, another speed (1: its own), which must leave at least `fewest_samples`. `noise`:
    recordings for the noise, or None to take other clips. `never_clean`: drawn again until something changes."""

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
        """That what is heard differs from the clean clip."""
        return 1 - (1 - self.p_noise - self.p_mix) * (1 - self.p_pitch) * (1 - self.p_reverb)

    @property
    def settings(self) -> list[Any]:
        """All that what is heard at the clip's own speed is made from but the recordings, plain values."""
        return [getattr(self, entry.name) for entry in fields(self) if entry.name not in _NOT_HEARD]

    def always(self) -> Augmentation:
        """The same, with every clip changed."""
        return replace(self, never_clean=True)

    def __call__(self, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator) -> Waveform:
        """The waveform the encoder hears, as long as `clean`; `clean` itself if nothing was drawn.

        `position` is the clip's own among `partners`. Raises PartnerError if the partner that was drawn cannot be read.
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
        """Both at a speed that is drawn. They get no longer: a slower clip loses its end."""
        if self.p_speed == 0 or rng.random() >= self.p_speed:
            return clean, heard
        speed = float(rng.uniform(*self.speed))
        if len(clean) / speed < self.fewest_samples + 1:
            return clean, heard
        paced = at_speed(clean, speed)
        return paced, paced if heard is clean else at_speed(heard, speed)

    def _drawn(self, rng: np.random.Generator) -> tuple[float, bool, bool]:
        """The draw that decides between noise, another voice and neither; whether the pitch changes; whether it is in a
        room."""
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
        noise = np.resize(_random_piece(source, other, len(clean), rng), len(clean))  # repeats a shorter one
        return clean + mix_gain(clean, noise, ratio_db=-float(rng.uniform(*self.snr_db))) * noise


def augmented(
    augmentation: Augmentation, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator
) -> tuple[Waveform, list[Failure]]:
    """What the encoder hears; a partner that cannot be read leaves the clip as it is, and is named."""
    try:
        return augmentation(clean, position, partners, rng), []
    except PartnerError as error:
        return clean, [Failure(error.name, error.reason, is_own=False)]


def at_pitch(clean: Waveform, semitones: float, sample_rate: int) -> Waveform:
    """The clip with all frequencies, pitch and formants, moved by `semitones`; as long, and at every moment what it was."""
    shifted = effects.pitch_shift(clean, sr=sample_rate, n_steps=semitones, n_fft=_PITCH_WINDOW, res_type="soxr_mq")
    return np.asarray(shifted, np.float32)


def at_speed(clip: Waveform, speed: float) -> Waveform:
    """The clip `speed` times as fast, and as much higher; at most as long as it was."""
    return resample(clip, speed, 1.0)[: len(clip)]


def in_room(clean: Waveform, samples: float, direct_db: float, rng: np.random.Generator) -> Waveform:
    """The clip with echoes of noise that fall by 60 dB in so many `samples`, `direct_db` below the direct sound in
    all; as loud and as long as it was."""
    times = np.arange(1, max(2, round(samples)))
    echoes = rng.standard_normal(len(times)) * 10 ** (-3 * times / samples)
    echoes *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(echoes**2))
    response = np.concatenate([[1.0], echoes])
    heard = fftconvolve(clean.astype(np.float64), response)[: len(clean)].astype(np.float32)
    return heard * mix_gain(clean, heard, ratio_db=0.0)


def mix_gain(clean: Waveform, other: Waveform, *, ratio_db: float) -> np.float32:
    """The factor that brings `other` to `ratio_db` relative to `clean` (mean powers); 0 if `other` is silent."""
    clean_power, other_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (clean, other))
    return np.float32(np.sqrt(clean_power * 10 ** (ratio_db / 10) / other_power) if other_power > 0 else 0.0)


def _other(choices: NDArray[np.int64], own: int, rng: np.random.Generator) -> int | None:
    """One of `choices` that is not one's own (`own` −1: any), or None if there is none."""
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
