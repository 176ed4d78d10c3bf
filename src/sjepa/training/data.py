"""The clips of a run, scanned, filtered and split: training, validation (a subset of the test
set), test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa.config.dataset import Dataset
from sjepa.config.run import RunConfig
from sjepa.core.errors import UserError
from sjepa.core.progress import Progress
from sjepa.core.random import hash_array, key
from sjepa.dataset.blend import Blend
from sjepa.dataset.clips import Clips
from sjepa.dataset.hub import HubOptions
from sjepa.dataset.listing import Source
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import Windows, crops, tiles

_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Shares:
    """Corpora sampled in proportion to their weights; `corpus_S`: corpus index of each source."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    corpus_S: NDArray[np.int64]


@dataclass(frozen=True)
class ClipSet:
    """Usable clips, and (name, reason) of each dropped clip."""

    clips: Clips
    dropped: list[tuple[str, str]]
    shares: Shares | None = None

    @property
    def remarks(self) -> list[str]:
        """Warnings about the sources."""
        return self.clips.remarks

    def describe(self) -> str:
        """One line: number of clips, hours, reasons for dropped clips; then one line per
        weighted corpus."""
        text = f"{len(self.clips):,} clips, {self.clips.hours:.2f} h"
        if self.dropped:
            counts = Counter(reason for _, reason in self.dropped).most_common()
            reasons = "; ".join(f"{count} {reason}" for reason, count in counts[:_SHOWN_REASONS])
            more = f"; {len(counts) - _SHOWN_REASONS} more reasons" if len(counts) > _SHOWN_REASONS else ""
            text += f" ({len(self.dropped)} dropped: {reasons}{more})"
        for line in self._corpora():
            text += f"\n            {line}"
        return text

    def _corpora(self) -> Iterator[str]:
        if self.shares is None:
            return
        own = self.shares.corpus_S[self.clips.source_N]
        for number, (name, weight) in enumerate(zip(self.shares.names, self.shares.weights, strict=True)):
            part = self.clips.subset(own == number)
            share = weight / sum(self.shares.weights)
            yield f"{share:.0%} of an epoch from {name}: {len(part):,} clips, {part.hours:.2f} h"


class Fingerprint:
    """Hash of the clips and windows of a run; a checkpoint's data position is valid for these
    only."""

    def __init__(self, clips: Clips, windows: Windows, *, more: str = "") -> None:
        """`more`: anything else that determines the order of an epoch."""
        columns = (clips.id_N, clips.length_N, windows.clip_N, windows.start_N, windows.length_N)
        content = b"".join(column.tobytes() for column in columns) + more.encode()
        self._digest = hashlib.blake2b(content, digest_size=16).hexdigest()

    def state_dict(self) -> dict[str, str]:
        return {"digest": self._digest}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Raises UserError if the state belongs to other data."""
        if state["digest"] != self._digest:
            raise UserError(
                "checkpoint.resume: the training set is not the one this run was made on (files added, removed or of other "
                "lengths); restore it or start a new run"
            )


def load_clips(config: RunConfig, paths: Any, name: str, *, progress: Progress, most: int | None = None) -> ClipSet:
    """Scans sources (or reads their caches), drops clips under `min_seconds`, samples at most
    `most` by seed.

    `name` is the configuration key, for messages. Raises UserError if no clip is usable.
    """
    settings = config.dataset
    sources, shares = _sources(paths, hub_options(settings), name)
    tables = [
        scan(source, depth=settings.scan, fallback_folder=config.cache_folder, progress=progress) for source in sources
    ]
    clips = Clips(tables, sample_rate=settings.sample_rate, sources_apart=settings.shards_at_once is not None)
    dropped = list(clips.dropped)
    long_enough = clips.length_N >= round(settings.min_seconds * settings.sample_rate)
    short = np.flatnonzero(~long_enough & (clips.length_N > 0))  # 0: not stored in an HDF5 file
    dropped += [(clips.name(int(index)), f"shorter than {settings.min_seconds:g} s") for index in short]
    clips = clips.subset(long_enough)
    if not len(clips):
        if not dropped:
            raise UserError(f"{name}: {paths} holds no audio file")
        example = f"{dropped[0][0]}: {dropped[0][1]}"
        raise UserError(f"{name}: none of the {len(dropped)} audio files in {paths} can be used ({example})")
    if most is not None and most < len(clips):
        clips = clips.subset(drawn(clips, most, config.seed, "max_samples"))
    if shares is not None:
        for number in set(range(len(shares.names))) - set(shares.corpus_S[clips.source_N].tolist()):
            raise UserError(
                f"{name}: no clip of {shares.names[number]} can be used (or was drawn), but it has a weight"
            )
    return ClipSet(clips, dropped, shares)


def _sources(paths: Any, hub: HubOptions, name: str) -> tuple[list[Source], Shares | None]:
    """The sources of `paths` in order, and the corpus weights, if any."""
    if not isinstance(paths, list) or not isinstance(paths[0], dict):
        return resolve_sources(paths, hub), None
    corpora = [resolve_sources(corpus["path"], hub) for corpus in paths]
    sources = [source for corpus in corpora for source in corpus]
    if len({source.identity for source in sources}) < len(sources):
        raise UserError(f"{name}: the same source is in more than one corpus")
    names = tuple(str(corpus["path"]) for corpus in paths)
    numbers = np.repeat(np.arange(len(corpora)), [len(corpus) for corpus in corpora])
    return sources, Shares(names, tuple(float(corpus["weight"]) for corpus in paths), numbers)


def hub_options(settings: Dataset) -> HubOptions:
    hf = settings.hf
    return HubOptions("", hf.split, hf.config, hf.audio_field, hf.speaker_field, hf.duration_field)


def blend(clip_set: ClipSet, windows: Windows, seed: int) -> Blend | None:
    """Sampling of an epoch's windows by corpus weight; None without weights."""
    shares = clip_set.shares
    if shares is None:
        return None
    blended = Blend(shares.corpus_S[clip_set.clips.source_N[windows.clip_N]], shares.weights, seed)
    for name, draws in zip(shares.names, blended.draws().tolist(), strict=True):
        if not draws:
            raise UserError(f"dataset.train_path: the weight of {name} is too small for even one clip of an epoch")
    return blended


def validation_part(test: Clips, fraction: float, seed: int) -> Clips:
    """A fraction of the test set (at least one clip), sampled by seed."""
    return test.subset(drawn(test, max(1, round(fraction * len(test))), seed, "validation"))


def held_out(clip_set: ClipSet, fraction: float, seed: int) -> tuple[ClipSet, ClipSet]:
    """The clips without, and with, a fraction of the audio that is sampled by seed: whole speakers
    if all are known and small enough, else single clips.

    At most twice the fraction or a third, whichever is more, is held out. Raises UserError if one
    of the two would be empty.
    """
    clips = clip_set.clips
    if len(clips) < 2:
        raise UserError("dataset.test_path: null holds clips of train_path out, which has only one; give a test set")
    speaker_N = np.array([clips.speaker(position) for position in range(len(clips))], dtype=np.int64)
    taken = (
        _sampled_groups(speaker_N, clips.length_N, fraction, seed) if speaker_N.all() else np.zeros(len(clips), bool)
    )
    if not taken.any():
        taken = _sampled_groups(clips.id_N, clips.length_N, fraction, seed)
    if not taken.any():
        taken[np.argmin(clips.length_N)] = True
    return replace(clip_set, clips=clips.subset(~taken)), replace(clip_set, clips=clips.subset(taken), dropped=[])


def _sampled_groups(
    group_N: NDArray[np.int64], length_N: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Marks clips of whole groups, in an order sampled by seed, until they make up the fraction;
    groups that would exceed the limit are passed over, and one is always left."""
    groups, index_N = np.unique(group_N, return_inverse=True)
    size_G, total = np.bincount(index_N, weights=length_N), float(length_N.sum())
    chosen: list[int] = []
    sampled = 0.0
    for group in np.argsort(hash_array(key(seed, "held out"), groups), kind="stable").tolist():
        if sampled >= fraction * total or len(chosen) == len(groups) - 1:
            break
        if sampled + size_G[group] <= total * max(2 * fraction, 1 / 3):
            chosen.append(group)
            sampled += size_G[group]
    return np.isin(index_N, chosen)


def training_windows(clips: Clips, settings: Dataset) -> Windows:
    """The windows of one epoch: one crop of each clip, or tiles that cover it."""
    longest = round(settings.max_seconds * settings.sample_rate)
    if settings.long_clips == "crop":
        return crops(clips.length_N, longest)
    return tiling(clips, settings, overlap=settings.window_overlap)


def tiling(clips: Clips, settings: Dataset, *, overlap: float = 0.0) -> Windows:
    """Windows of at most `max_seconds` that cover every sample of every clip."""
    longest, shortest = (
        round(seconds * settings.sample_rate) for seconds in (settings.max_seconds, settings.min_seconds)
    )
    return tiles(clips.length_N, longest, overlap=overlap, min_samples=shortest)


def drawn(clips: Clips, count: int, seed: int, purpose: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Sorted indices of `count` clips, sampled by seed."""
    hashes = hash_array(key(seed, purpose), clips.id_N)
    return np.sort(np.argsort(hashes, kind="stable")[:count])
