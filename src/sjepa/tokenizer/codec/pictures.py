"""Pictures of reconstructed audio, and of measures and use of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

from sjepa.dataset.audio import Waveform
from sjepa.reporting.plots import save_figure
from sjepa.tokenizer.codec.comparison import Comparison
from sjepa.tokenizer.codec.losses import MEL_BANDS, MEL_WINDOW, Spectra
from sjepa.tokenizer.codec.quality import MEASURES
from sjepa.tokenizer.codec.usage import GroupUsage

_DECIBELS = 80.0  # shown below the loudest


def draw_reconstruction(original: Waveform, made: Waveform, sample_rate: int, path: Path) -> Path:
    """Waveforms and mel spectrograms, original above reconstruction."""
    picture = Picture(figsize=(9, 6), layout="constrained")
    axes = picture.subplots(2, 2, sharex=True, sharey="col", width_ratios=(1, 2))
    spectra = Spectra(MEL_WINDOW, mel_bands=MEL_BANDS, sample_rate=sample_rate)
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
            extent=(0, seconds, 0, MEL_BANDS),
        )
        mel.set_ylabel("mel band")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    picture.colorbar(image, ax=axes[:, 1], label="dB")
    return save_figure(picture, path)


def draw_quality(found: Comparison, path: Path) -> Path:
    """A panel per measure: the mean of every system, and its standard deviation over the pieces."""
    systems = list(found.values)
    shown = [measure for measure in MEASURES if any(found.mean(name, measure.name)[2] for name in systems)]
    picture = Picture(figsize=(2.6 * len(shown) + 2, 0.5 * len(systems) + 1.6), layout="constrained")
    for axis, measure in zip(np.atleast_1d(picture.subplots(1, len(shown), sharey=True)), shown, strict=True):
        figures = [found.mean(name, measure.name) for name in systems]
        means = [mean for mean, _, _ in figures]
        colors = ["#4477aa", *["#bbbbbb"] * (len(systems) - 1)]
        axis.barh(systems, means, xerr=[deviation for _, deviation, _ in figures], color=colors, ecolor="#555555")
        for row, mean in enumerate(means):
            axis.text(1.02, row, f"{mean:.2f}", transform=axis.get_yaxis_transform(), va="center", fontsize=9)
        axis.set_title(f"{measure.title} ({measure.better} is better)", fontsize=9)
        axis.set_xlabel(measure.axis)
    axis.invert_yaxis()
    return save_figure(picture, path)


def draw_usage(groups: Sequence[GroupUsage], path: Path) -> Path:
    """Share of the vocabulary that occurs, and perplexity as a share of it, by group."""
    picture = Picture(figsize=(max(5.0, 0.35 * len(groups) + 2), 3.2), layout="constrained")
    axis, place = picture.subplots(), np.arange(len(groups))
    for offset, color, label, values in (
        (-0.2, "#bbbbbb", "tokens that occur", [group.used / group.vocabulary for group in groups]),
        (0.2, "#4477aa", "perplexity", [group.perplexity / group.vocabulary for group in groups]),
    ):
        axis.bar(place + offset, np.array(values) * 100, 0.4, color=color, label=label)
    axis.set(xlabel="group", ylabel="% of the vocabulary", xticks=place, ylim=(0, 105))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return save_figure(picture, path)
