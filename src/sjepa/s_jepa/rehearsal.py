"""Updates on noise, to learn their speed without data: a network of a configuration, targets from
a random mixture."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from sjepa.core.distributed import Engine
from sjepa.core.frames import FrameGeometry
from sjepa.core.learner import Learner
from sjepa.core.random import generator
from sjepa.core.ranks import ALONE
from sjepa.dataset.batch import Batch, Sample, collate
from sjepa.features.mfcc import NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.modules.ema import EMAEncoder
from sjepa.s_jepa.assembly import step_settings
from sjepa.s_jepa.metrics import MetricSums
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.network import build_model
from sjepa.s_jepa.optimizer import build_optimizer
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.step import Step, optimiser_update
from sjepa.s_jepa.targets.frozen import MFCC_FEATURES, MFCCTargets
from sjepa.s_jepa.targets.layer_choice import LayerChoice
from sjepa.s_jepa.targets.online import OnlineSettings, OnlineTargets
from sjepa.training.compilation import compile_layers

_RUNS = 3


class TrainingStep:
    """A full update per call, on the same micro-batches: targets, encoder, predictor, head, KL,
    clipping, AdamW; in phase 2 also mixture and EMA updates."""

    def __init__(self, engine: Engine, config: Config, window: Sequence[Batch], *, layer: int = 0, first: int = 0):
        """`layer`: of the online mixture, if there are so many; `first`: number of the first
        update."""
        self._stage = plan(config, 10).at(0)
        network = build_model(config, self._stage, note=lambda _: None)
        if config.train.compile:
            compile_layers(network.transformer_layers())
        self.learner = Learner(engine, network, partial(build_optimizer, lr=1e-4, weight_decay=1e-3, betas=(0.9, 0.99)))
        self.learner.model.train()
        on_gpu = engine.device.type == "cuda"
        self.window = [batch.pin_memory() for batch in window] if on_gpu else window  # as the loader does
        clusters, online = self._stage.num_clusters, self._stage.targets == "online"
        self.targets = engine.to_device(_targets(network.encoder, config.geometry, clusters, layer if online else None))
        self.settings, self._numbers = step_settings(config), itertools.count(first)
        self._sums = MetricSums(clusters, engine.device)

    def __call__(self) -> None:
        number = next(self._numbers)
        step = Step(number, self._stage, self.settings)
        assert optimiser_update(self.learner, self.targets, self.window, step, self._sums).made
        self.targets.after_update(self.learner.network.encoder, number, ALONE)


def _targets(encoder: Encoder, geometry: FrameGeometry, clusters: int, layer: int | None) -> Any:
    """Targets from a random mixture whose components are all in use; of the encoder, with a
    `layer`."""
    if layer is None:
        gmm = DiagonalGMM(clusters, NUM_FEATURES, features=MFCC_FEATURES)
        means, variances = 20 * torch.randn(clusters, NUM_FEATURES), torch.full((clusters, NUM_FEATURES), 100.0)
        gmm.set_parameters(torch.ones(clusters), means, variances)
        return MFCCTargets(gmm, geometry)
    width = encoder.shape.width
    gmm = DiagonalGMM(clusters, width, features="encoder")
    gmm.set_parameters(torch.ones(clusters), torch.randn(clusters, width), torch.ones(clusters, width))
    settings = OnlineSettings(0.999, lambda step: 0.999, None)
    choice = LayerChoice(min(layer, encoder.num_layers - 1), smoothing=0.9)
    return OnlineTargets(gmm, EMAEncoder(encoder), choice, settings)


def noise_batch(lengths: Sequence[int]) -> Batch:
    """Noise clips of so many samples, of slightly varying level."""
    draws = generator(0, "noise batch")
    waveforms = [(draws.uniform(0.05, 0.2) * draws.standard_normal(length)).astype("float32") for length in lengths]
    return collate([(Sample(wave, wave, index, index, ""), []) for index, wave in enumerate(waveforms)])


def audio_rate(engine: Engine, config: Config, seconds: float) -> float:
    """Seconds of audio per second of training on micro-batches of `seconds` of noise; in phase 2
    where the configuration starts in it."""
    rate = config.dataset.sample_rate
    clip = min(seconds, 5.0)
    batch = noise_batch([round(clip * rate)] * max(1, round(seconds / clip)))
    return batch.total_samples / rate / median_seconds(TrainingStep(engine, config, [batch]), engine)


def median_seconds(work: Callable[[], object], engine: Engine, *, runs: int = _RUNS) -> float:
    """Median of `runs` calls, after one to warm up."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    return statistics.median(timed() for _ in range(runs))
