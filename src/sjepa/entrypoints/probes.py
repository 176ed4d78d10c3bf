"""Runs the configured probes and yields the rows of probes.csv."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.model_hub import fetched, is_hub
from sjepa.dataset.clips import Clips
from sjepa.evaluation.examples import LabelledClips, ProbeSettings
from sjepa.evaluation.features import (
    ClipBatches,
    ClipFeatures,
    Extractor,
    extract,
    joined,
    mel_extractor,
    mfcc_extractor,
)
from sjepa.evaluation.labels import Labels
from sjepa.evaluation.probing import check_task, needs_frames, needs_jiwer, run_task
from sjepa.evaluation.scores import ProbeRow, rows_of
from sjepa.gmm.space import AS_THEY_ARE, SpaceSettings
from sjepa.reporting.console import Console
from sjepa.s_jepa.extractors import encoder_extractor, posterior_extractor, untrained_extractor
from sjepa.s_jepa.labelled import LabelledSet
from sjepa.s_jepa.pretrained import PretrainedEncoder, load_encoder
from sjepa.s_jepa.settings import Config
from sjepa.s_jepa.units.results import saved_targets
from sjepa.s_jepa.weights import Weights
from sjepa.tokenizer.extractor import (
    is_codec,
    is_token_encoder,
    load_token_encoder,
    quantised_extractor,
    token_extractor,
    untrained_token_extractor,
)
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.training.data import drawn
from sjepa.training.feeding import evaluation_loader

# normalisation and context of baseline features, by suffix of the baseline's name
_FORMS = {"": AS_THEY_ARE, "clip": SpaceSettings("clip"), "context": SpaceSettings("clip", context=4)}


def probe_rows(
    config: Config,
    engine: Engine,
    console: Console,
    given: Sequence[LabelledSet],
    weights: Weights | None,
) -> Iterator[ProbeRow]:
    """Validates the inputs of the probes and returns an iterator that runs them. `given`: the test
    set and, optionally, a training set; `weights`: those of `init_weights`, None for a Hugging Face
    folder.

    Raises UserError if a label, a layer, an encoder or a package is missing.
    """
    probe = config.probe
    if any(map(needs_jiwer, probe.tasks)) and importlib.util.find_spec("jiwer") is None:
        raise UserError("probe.tasks: error rates need the package jiwer: pip install 'sjepa[probes]'")
    sets = [_chosen(config, own) for own in given]
    known = Labels([row for own in sets for row in own.labels.rows], sets[0].labels.source)
    counts = [len(own.clips) for own in sets]
    labelled = LabelledClips(known, np.repeat([False, True][: len(counts)], counts))
    settings = ProbeSettings(
        engine.device, config.seed, probe.splits, probe.apart, probe.max_frames, probe.steps, probe.beam
    )
    for task in probe.tasks:
        check_task(task, labelled, settings)
    extractors = _extractors(config, engine, weights)
    for extractor in extractors:
        extractor.columns(probe.layers)
    return _Probing(config, engine, console, [own.clips for own in sets], labelled, settings).rows(extractors)


@dataclass(frozen=True)
class _Probing:
    """What the probes of an evaluation run on; `sets`: clips of the test set, and perhaps of a
    training set."""

    config: Config
    engine: Engine
    console: Console
    sets: Sequence[Clips]
    labelled: LabelledClips
    settings: ProbeSettings

    def rows(self, extractors: Sequence[Extractor]) -> Iterator[ProbeRow]:
        """Every task on every layer of every extractor."""
        for number, extractor in enumerate(extractors):
            specs = extractor.columns(self.config.probe.layers)
            layers = sorted({layer for _, own in specs for layer in own})
            parts = [self._features(clips, extractor, layers, warns=number == 0) for clips in self.sets]
            features = joined(parts)
            del parts
            for layer, own in specs:
                yield from self._layer_rows(extractor.name, layer, features, [layers.index(index) for index in own])
            del features  # before those of the next one

    def _layer_rows(self, name: str, layer: str, features: ClipFeatures, columns: list[int]) -> Iterator[ProbeRow]:
        for task in self.config.probe.tasks:
            for probed in run_task(task, self.labelled, features, columns, self.settings):
                rows = rows_of(task, probed, name, layer, seed=self.config.seed)
                yield from rows
                shown = ", ".join(
                    f"{row.metric} {row.mean:.4f}" + (f" ± {row.deviation:.4f}" if row.splits > 1 else "")
                    for row in rows
                )
                self.console.note(f"{name}{f', layer {layer}' if layer else ''}: {task}, {probed.probe}: {shown}")

    def _features(self, clips: Clips, extractor: Extractor, layers: Sequence[int], *, warns: bool) -> ClipFeatures:
        console, loader = self.console, evaluation_loader(self.config, clips, self.engine)
        batches = console.progress(loader.epoch(0), total=loader.num_rounds, label=extractor.name)
        return extract(
            extractor,
            layers,
            ClipBatches(batches, loader.dataset.windows, len(clips)),
            keep_frames=any(map(needs_frames, self.config.probe.tasks)),
            warn=lambda failure: console.warn(f"skipped {failure.name}: {failure.reason}") if warns else None,
        )


def _chosen(config: Config, given: LabelledSet) -> LabelledSet:
    """At most `probe.max_clips` of a set, sampled by seed."""
    if len(given.clips) <= config.probe.max_clips:
        return given
    kept = drawn(given.clips, config.probe.max_clips, config.seed, "probe")
    rows = [given.labels.rows[position] for position in kept.tolist()]
    return LabelledSet(given.clips.subset(kept), replace(given.labels, rows=rows))


def _extractors(config: Config, engine: Engine, weights: Weights | None) -> list[Extractor]:
    """The encoder, those of `probe.compare`, and the baselines."""
    path = Path(str(config.init_weights))
    own = PretrainedEncoder(weights.model.encoder) if weights is not None else _encoder(path)
    found = [_extractor(path, own, config, engine)]
    if is_codec(path):
        found.append(quantised_extractor("its tokens", path, config.dataset.sample_rate, engine))
    for other in config.probe.compare:
        folder = fetched(other, "probe.compare") if is_hub(other) else Path(other)
        found.append(_extractor(Path(other), _encoder(folder), config, engine))
    found += _baselines(config, engine, own, weights)
    names = [extractor.name for extractor in found]
    twice = {name for name in names if names.count(name) > 1}
    given = [str(path), *config.probe.compare]
    return [
        replace(extractor, name=given[index]) if extractor.name in twice and index < len(given) else extractor
        for index, extractor in enumerate(found)
    ]


def _encoder(path: Path) -> PretrainedEncoder | TokenEncoder:
    """The encoder of a weights file of either system, or of a Hugging Face folder."""
    return load_token_encoder(path) if is_token_encoder(path) else load_encoder(path)


def _extractor(path: Path, encoder: PretrainedEncoder | TokenEncoder, config: Config, engine: Engine) -> Extractor:
    if isinstance(encoder, TokenEncoder):
        return token_extractor(short_name(path), encoder, config.dataset.sample_rate, engine)
    return encoder_extractor(short_name(path), encoder, engine)


def _baselines(
    config: Config, engine: Engine, encoder: PretrainedEncoder | TokenEncoder, weights: Weights | None
) -> Iterator[Extractor]:
    """The baselines in the configured order. Raises UserError if `mixture` is requested without
    weights."""
    for name in config.probe.baselines:
        source, _, form = name.partition("_")
        space = _FORMS[form]
        if name == "untrained" and isinstance(encoder, TokenEncoder):
            yield untrained_token_extractor(encoder, config.seed, config.dataset.sample_rate, engine)
        elif name == "untrained" and isinstance(encoder, PretrainedEncoder):
            yield untrained_extractor(encoder.encoder, config.seed, engine)
        elif name == "mixture":
            if weights is None:
                raise UserError(f"probe.baselines: mixture: {config.init_weights} holds none")
            yield posterior_extractor(saved_targets(engine, weights), engine)
        else:
            plain = mfcc_extractor if source == "mfcc" else mel_extractor
            yield plain(engine, config.geometry, space)


def short_name(path: Path) -> str:
    """File name with run name: demo/train/best.pt."""
    parts = [part for part in path.parts if part not in ("weights", "runs", "/", "..")]
    return "/".join(parts[-3:])
