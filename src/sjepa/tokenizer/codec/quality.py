"""Measures of reconstructed audio, clip by clip. S samples."""

from __future__ import annotations

import importlib.util
import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pystoi
import torch

from sjepa.core.frames import SPEECH
from sjepa.dataset.audio import Waveform, resample
from sjepa.tokenizer.codec.losses import MelDistance, SpectralLoss, waveform_error

_PESQ_RATE = SPEECH.sample_rate  # of its wide-band form
_LEAST_STOI = 0.5  # seconds; STOI compares 0.38 s at once


@dataclass(frozen=True)
class Measure:
    """`short`: heads a column of a table; `axis`: its unit; `better`: lower or higher."""

    name: str
    short: str
    title: str
    axis: str
    better: str


MEASURES = (
    Measure("mel", "mel", "Mel distance", "mean |Δ ln| of 80 bands", "lower"),
    Measure("spectral", "STFT", "Multi-resolution STFT", "mean |Δ| + |Δ ln|", "lower"),
    Measure("si_sdr", "SI-SDR", "SI-SDR", "dB", "higher"),
    Measure("stoi", "STOI", "STOI", "0 to 1", "higher"),
    Measure("pesq", "PESQ", "PESQ", "MOS-LQO", "higher"),
)


@dataclass(frozen=True)
class Quality:
    """Measures of audio at a rate (Hz)."""

    sample_rate: int

    @cached_property
    def _losses(self) -> tuple[MelDistance, SpectralLoss]:
        return MelDistance(self.sample_rate), SpectralLoss()

    def of(self, found_S: Waveform, wanted_S: Waveform) -> dict[str, float]:
        """By name of the measure; NaN where one is not defined (STOI of clips below 0.5 s, PESQ
        without its package or of silence)."""
        found_1S, wanted_1S = torch.from_numpy(found_S)[None], torch.from_numpy(wanted_S)[None]
        mel, spectral = (float(loss(found_1S, wanted_1S, None)) for loss in self._losses)
        return {
            "mel": mel,
            "spectral": spectral,
            "si_sdr": si_sdr(found_S, wanted_S),
            "stoi": self._stoi(found_S, wanted_S),
            "pesq": self._pesq(found_S, wanted_S),
            "waveform": float(waveform_error(found_1S, wanted_1S, None)),
        }

    def _stoi(self, found_S: Waveform, wanted_S: Waveform) -> float:
        if len(wanted_S) < _LEAST_STOI * self.sample_rate or not wanted_S.any():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # too little speech to compare
            try:
                return float(pystoi.stoi(wanted_S, found_S, self.sample_rate))
            except RuntimeWarning:
                return math.nan

    def _pesq(self, found_S: Waveform, wanted_S: Waveform) -> float:
        if not has_pesq():
            return math.nan
        import pesq

        found_S, wanted_S = (resample(own, self.sample_rate, _PESQ_RATE) for own in (found_S, wanted_S))
        try:
            return float(pesq.pesq(_PESQ_RATE, wanted_S, found_S, "wb"))
        except pesq.PesqError:
            return math.nan


def has_pesq() -> bool:
    """Whether the package pesq, which needs a compiler, is installed."""
    return importlib.util.find_spec("pesq") is not None


def si_sdr(found_S: Waveform, wanted_S: Waveform) -> float:
    """Scale-invariant signal-to-distortion ratio, dB (Le Roux et al. 2019), of audio without its
    mean; NaN of silence."""
    found, wanted = (own.astype(np.float64) - own.mean(dtype=np.float64) for own in (found_S, wanted_S))
    power = float(wanted @ wanted)
    if power == 0:
        return math.nan
    target = (found @ wanted) / power * wanted
    signal, distortion = float(target @ target), float(((found - target) ** 2).sum())
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / distortion) if distortion else math.inf
