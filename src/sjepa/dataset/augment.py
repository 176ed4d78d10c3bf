"""Denoising augmentation in the style of WavLM: another voice or noise on what the encoder hears.
[Augmentation Details]"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.dataset.batch import Failure
from sjepa.dataset.clips import Clips


class PartnerError(Exception):
    """The clip that was drawn to be mixed in cannot be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and level ranges (dB). `noise`: recordings for the noise, or None to take other clips."""

    p_noise: float
    p_mix: float
    snr_db: tuple[float, float]
    ratio_db: tuple[float, float]
    noise: Clips | None = None

    @property
    def probability(self) -> float:
        """That a clip is changed at all."""
        return self.p_noise + self.p_mix

    def always(self) -> Augmentation:
        """The same, with every clip changed."""
        return replace(self, p_noise=self.p_noise / self.probability, p_mix=self.p_mix / self.probability)

    def __call__(self, clean: Waveform, position: int, partners: Clips, rng: np.random.Generator) -> Waveform:
        """The waveform the encoder hears: mixed, noisy or as it is (then `clean` itself).

        `position` is the clip's own among `partners`. Raises PartnerError if the partner that was drawn cannot be read.
        """
        draw = rng.random()
        if draw < self.p_mix:
            return self._mixed(clean, position, partners, rng)
        if draw < self.probability:
            return self._noisy(clean, position, partners, rng)
        return clean

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
