"""Labelled clips for evaluation: the test set and the optional training set of probes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sjepa.core.distributed import Engine
from sjepa.core.progress import Messages
from sjepa.dataset.clips import Clips
from sjepa.evaluation.alignment import align
from sjepa.evaluation.features import ClipBatches, extract, mfcc_extractor
from sjepa.evaluation.labels import Labels, read_labels, times_of, words_of
from sjepa.s_jepa.settings import Config
from sjepa.training.data import load_clips
from sjepa.training.feeding import evaluation_loader


@dataclass(frozen=True)
class LabelledSet:
    """Clips with one row of labels each."""

    clips: Clips
    labels: Labels


def labelled_sets(config: Config, engine: Engine, messages: Messages, test: Clips) -> list[LabelledSet]:
    """The test set first. Raises UserError if labels or clips cannot be read."""
    sets = [labelled_set(config, messages, test, split="test")]
    if config.probe.train_path is not None:
        train = load_clips(config, config.probe.train_path, "probe.train_path", progress=messages.progress).clips
        sets.append(labelled_set(config, messages, train, split="train"))
    return aligned(config, engine, messages, sets) if config.evaluation.align else sets


def labelled_set(config: Config, messages: Messages, clips: Clips, *, split: str) -> LabelledSet:
    """Clips with their labels from `evaluation.labels`; warns about clips without labels. Raises
    UserError if the table cannot be read."""
    labels = read_labels(config.evaluation.labels, clips, split=split)
    without = labels.without
    if without and len(without) < len(clips):
        messages.warn(
            f"{len(without):,} of {len(clips):,} {split} clips have no labels: {clips.name(without[0])} for one"
        )
    return LabelledSet(clips, labels)


def aligned(config: Config, engine: Engine, messages: Messages, sets: list[LabelledSet]) -> list[LabelledSet]:
    """Adds phone times by forced alignment to clips that have phones without times. The acoustic
    models are trained on all sets together."""
    features: list[NDArray[np.float64]] = []
    seconds: list[NDArray[np.float64]] = []
    owner: list[tuple[int, int]] = []
    words: list[list[list[str]]] = []
    for number, own in enumerate(sets):
        loader = evaluation_loader(config, own.clips, engine)
        batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="alignment: MFCC")
        windows = loader.dataset.windows
        found = extract(
            mfcc_extractor(engine, config.geometry),
            [0],
            ClipBatches(batches, windows, len(own.clips)),
            keep_frames=True,
            warn=lambda _: None,
        )
        for clip, row in enumerate(own.labels.rows):
            said, frames = words_of(row.get("phones", "")), found.frames[clip]
            if row.get("times") or not said or frames is None or len(frames) < sum(map(len, said)):
                continue
            x_TD = frames[:, 0].double().numpy()
            features.append((x_TD - x_TD.mean(0)) / np.maximum(x_TD.std(0), 1e-3))
            seconds.append(found.seconds[clip])
            owner.append((number, clip))
            words.append(said)
    if not owner:
        messages.warn("evaluation.align: no clip has phones without times")
        return sets
    messages.note(f"aligning the phones of {len(owner):,} clips")
    rows = [[dict(row) for row in own.labels.rows] for own in sets]
    for (number, clip), spans in zip(owner, align(features, words, config.geometry, seconds=seconds), strict=True):
        rows[number][clip]["times"] = times_of(spans)
    return [
        replace(own, labels=replace(own.labels, rows=list(own_rows))) for own, own_rows in zip(sets, rows, strict=True)
    ]
