"""Pictures of reconstructed audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

from sjepa.dataset.audio import Waveform
from sjepa.reporting.plots import save_figure
from sjepa.tokenizer.codec.losses import Spectra

_BANDS, _WINDOW = 80, 1024
_DECIBELS = 80.0  # shown below the loudest


def draw_reconstruction(original: Waveform, made: Waveform, sample_rate: int, path: Path) -> Path:
    """Waveforms and mel spectrograms, original above reconstruction."""
    picture = Picture(figsize=(9, 6), layout="constrained")
    axes = picture.subplots(2, 2, sharex=True, sharey="col", width_ratios=(1, 2))
    spectra = Spectra(_WINDOW, mel_bands=_BANDS, sample_rate=sample_rate)
    levels = [20 * np.log10(spectra(torch.from_numpy(audio)[None])[0].numpy()) for audio in (original, made)]
    top, seconds = float(levels[0].max()), len(original) / sample_rate
    for (wave, mel), audio, level, name in zip(
        axes, (original, made), levels, ("original", "from tokens"), strict=True
    ):
        wave.plot(np.arange(len(audio)) / sample_rate, audio, color="#4477aa", linewidth=0.4)
        wave.set_ylabel(f"{name}\namplitude")
        image = mel.imshow(
            level,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=top - _DECIBELS,
            vmax=top,
            extent=(0, seconds, 0, _BANDS),
        )
        mel.set_ylabel("mel band")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    picture.colorbar(image, ax=axes[:, 1], label="dB")
    return save_figure(picture, path)
