"""Draws the figures of docs/en_concepts.md and docs/fr_concepts.md: `python -m
scripts.concept_figures`. On one generated clip, with fixed seeds."""

from __future__ import annotations

import math
import tempfile
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sjepa.core.frames import SPEECH
from sjepa.core.random import key
from sjepa.dataset.demo import write_corpus
from sjepa.features.effective_rank import effective_rank
from sjepa.features.mel import log_mel
from sjepa.features.mfcc import MFCC
from sjepa.gmm.fit import FitSettings, fit_gmm
from sjepa.s_jepa.modules.masking import span_mask

FOLDER = Path(__file__).parents[1] / "docs/images"
BLUE, RED, GREEN, GREY = "#4477aa", "#cc6677", "#228833", "#bbbbbb"
CLIPS, CLUSTERS, MASK_RATIO, MASK_LENGTH = 40, 12, 0.65, 10

ENGLISH = {
    "point": ".", "band": "mel band", "masked": "masked", "posterior": "posterior", "frames": "frames of 20 ms",
    "given": "what the encoder hears: 31 of 49 frames masked", "target": f"what is predicted: posteriors of {CLUSTERS} components",
    "density": "density", "feature": "feature", "first": "first component", "second": "second component",
    "frame": "the frame at 0.8", "share": "share of the old copy", "updates": "updates", "decay": "decay",
    "two": "effective rank", "collapsed": "effective rank",
}  # fmt: skip
FRENCH = {
    "point": ",", "band": "bande mel", "masked": "masqué", "posterior": "a posteriori", "frames": "trames de 20 ms",
    "given": "ce qu'entend l'encodeur : 31 trames sur 49 masquées", "target": f"ce qu'il faut prédire : {CLUSTERS} composantes",
    "density": "densité", "feature": "caractéristique", "first": "première composante", "second": "seconde composante",
    "frame": "la trame à 0,8", "share": "part de l'ancienne copie", "updates": "pas", "decay": "facteur",
    "two": "rang effectif", "collapsed": "rang effectif",
}  # fmt: skip


def main() -> None:
    """Writes every figure in both languages."""
    waveforms = demo_speech()
    for words, ending in ((ENGLISH, ""), (FRENCH, "_fr")):
        for name, figure in (
            ("masking", masking(waveforms, words)),
            ("posterior", posterior(words)),
            ("ema", average(words)),
            ("rank", ranks(words)),
        ):
            path = FOLDER / f"concepts_{name}{ending}.svg"
            with matplotlib.rc_context({"svg.hashsalt": "sjepa"}):
                figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
            print(path)


def demo_speech() -> list[np.ndarray]:
    """Generated clips at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), speakers=4, clips=CLIPS // 4, seed=0)
        with zipfile.ZipFile(Path(folder) / "train.zip") as archive:
            names = [name for name in sorted(archive.namelist()) if name.endswith(".flac")]
            found = []
            for name in names:
                with archive.open(name) as file:
                    found.append(soundfile.read(file, dtype="float32")[0])
            return found


def plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def masking(waveforms: list[np.ndarray], words: dict[str, str]) -> Figure:
    """One second: mel bands with masked spans greyed out, target posteriors below."""
    mfcc = MFCC(SPEECH)
    features = [mfcc(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))[0] for wave in waveforms]
    gmm = fit_gmm(torch.cat(features), FitSettings(CLUSTERS, seed=0)).gmm
    second = next(wave for wave in waveforms if len(wave) >= 20000)[2000:18000]
    one = mfcc(torch.from_numpy(second)[None], torch.tensor([len(second)]))[0]
    posterior_TK = gmm.posteriors(one).responsibilities_NK.numpy()
    frames = len(one)
    mask_T = span_mask(
        [frames],
        torch.zeros(1, dtype=torch.int64),
        mask_ratio=MASK_RATIO,
        mask_length=MASK_LENGTH,
        base_key=key(18, "figure"),
    )[0].numpy()
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    mel_MT = np.asarray(log_mel(second, SPEECH))
    shown = np.ma.array(mel_MT, mask=np.broadcast_to(mask_T[: mel_MT.shape[1]], mel_MT.shape))
    colours = matplotlib.colormaps["magma"].with_extremes(bad=GREY)
    above.imshow(shown, origin="lower", aspect="auto", cmap=colours, interpolation="nearest")
    above.set_title(words["given"], loc="left", fontsize=10)
    above.set_ylabel(words["band"])
    order = np.argsort(posterior_TK.argmax(0))
    below.imshow(posterior_TK[:, order].T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    below.set_title(words["target"], loc="left", fontsize=10)
    below.set_ylabel("K")
    below.set_xlabel(words["frames"])
    return figure


def posterior(words: dict[str, str]) -> Figure:
    """Two Gaussians with the frame of the text."""
    x = np.linspace(-3, 5, 400)
    bells = [np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (0, 2)]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = plain(figure.subplots())
    for bell, colour, name in zip(bells, (BLUE, RED), ("first", "second"), strict=True):
        axes.plot(x, bell / 2, color=colour, label=words[name])
    axes.axvline(0.8, color="#555555", linestyle="--", linewidth=1, label=words["frame"])
    axes.set_xlabel(words["feature"])
    axes.set_ylabel(words["density"])
    beside = axes.twinx()
    beside.plot(x, bells[0] / (bells[0] + bells[1]), color=BLUE, linestyle=":")
    beside.plot(x, bells[1] / (bells[0] + bells[1]), color=RED, linestyle=":")
    beside.set_ylabel(f"{words['posterior']} (···)")
    beside.set_ylim(0, 1.02)
    beside.spines["top"].set_visible(False)
    axes.set_ylim(0, 0.25)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def average(words: dict[str, str]) -> Figure:
    """What is left of the copy after so many updates."""
    steps = np.arange(0, 20001, 20)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = plain(figure.subplots())
    for decay, colour in ((0.99, GREEN), (0.999, BLUE), (0.9999, RED)):
        axes.plot(steps, decay**steps, color=colour, label=f"{words['decay']} {decay}".replace(".", words["point"]))
    axes.axhline(math.exp(-1), color="#999999", linewidth=0.8, linestyle=":")
    axes.text(20000, math.exp(-1) + 0.02, "37 %", ha="right", fontsize=8, color="#666666")
    axes.set_xlabel(words["updates"])
    axes.set_ylabel(words["share"])
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)
    return figure


def ranks(words: dict[str, str]) -> Figure:
    """Clouds of features with their effective rank, as the code computes it."""
    draws = np.random.default_rng(0).standard_normal((400, 2))
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, spread, name in zip(figure.subplots(1, 3), (1.0, 0.11, 0.003), ("two", "two", "collapsed"), strict=True):
        points = draws * [1.0, spread]
        rank = float(effective_rank(torch.from_numpy(points).float()))
        plain(axes).scatter(*points.T, s=4, color=BLUE, alpha=0.5, linewidths=0)
        axes.set_xlim(-3.5, 3.5)
        axes.set_ylim(-3.5, 3.5)
        axes.set_aspect("equal")
        axes.set_title(f"{words[name]} {rank:.1f}".replace(".", words["point"]), fontsize=10)
    return figure


if __name__ == "__main__":
    main()
