"""Builds the data sets and loaders of a run from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sjepa.config.run import RunConfig
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.progress import Progress
from sjepa.core.random import key
from sjepa.dataset.augment import Augmentation
from sjepa.dataset.clips import Clips
from sjepa.dataset.hub import HubStream
from sjepa.dataset.loader import Batching, EpochLoader, Loader, Readers, WindowDataset
from sjepa.dataset.stream import StreamBatching, StreamLoader, contents, keep_some
from sjepa.dataset.windows import Windows
from sjepa.training.data import (
    ClipSet,
    Fingerprint,
    blend,
    held_out,
    hub_options,
    load_clips,
    tiling,
    training_windows,
    validation_part,
)


@dataclass(frozen=True)
class Data:
    """The clips of a run and the training windows of an epoch. With `stream`, an epoch reads the
    stream, and `train` holds only the clips kept from it; those of `without` are left for the
    test."""

    train: ClipSet
    test: ClipSet
    validation: Clips
    noise: ClipSet | None
    windows: Windows
    stream: HubStream | None = None
    without: frozenset[bytes] = frozenset()

    @property
    def fingerprint(self) -> Fingerprint:
        """Hash of everything that determines the order of an epoch."""
        parts = () if self.stream is None else (self.stream.options, self.stream.num_rows)
        more = repr((*parts, sorted(self.without)) if self.without else parts) if parts else ""
        return Fingerprint(self.train.clips, self.windows, more=more)


def load_data(config: RunConfig, *, progress: Progress) -> Data:
    """Scans the configured data sets. Raises UserError if one has no usable clip."""
    settings, suffix = config.dataset, "h5" if config.dataset.use_hdf5 else "path"
    load = partial(load_set, config, progress=progress)
    stream, kept, without = None, Path(), frozenset[bytes]()
    if settings.hf.streaming:
        stream, kept, train = _kept_of_stream(config, progress)
    else:
        train = load(f"train_{suffix}", most=settings.max_train_samples)
    if settings.test_path is None and suffix == "path":
        train, test = held_out(train, settings.held_out, config.seed)
        without = contents(kept, test.clips) if stream else without
    else:
        test = load(f"test_{suffix}", most=settings.max_test_samples)
    return Data(
        train,
        test,
        validation_part(test.clips, settings.val_prob, config.seed),
        noise_set(config, progress=progress),
        training_windows(train.clips, settings),
        stream,
        without,
    )


def _kept_of_stream(config: RunConfig, progress: Progress) -> tuple[HubStream, Path, ClipSet]:
    """The stream at `dataset.train_path`, and the clips kept from it with their file."""
    settings, hf = config.dataset, config.dataset.hf
    if config.train.max_batch_seconds is not None:
        raise UserError(
            "train.max_batch_seconds: a stream does not say how long its clips are; set it to null and train.batch_size to "
            "the clips of a micro-batch"
        )
    options = hub_options(settings).of(settings.train_path)
    stream = HubStream(
        options, seed=config.seed, buffer_rows=hf.shuffle_buffer, rows=hf.rows, most=settings.max_train_samples
    )
    described = repr((options, config.seed, hf.kept_clips, hf.shuffle_buffer, stream.num_rows))
    kept = config.cache_folder / f"{options.path.name}.{key('kept of a stream', described):016x}.tar"
    keep_some(stream, kept, hf.kept_clips)
    return stream, kept, load_clips(config, str(kept), "dataset.train_path", progress=progress)


def evaluation_set(config: RunConfig, *, progress: Progress) -> ClipSet:
    """The test set; with `dataset.test_path: null` the clips that training held out."""
    settings = config.dataset
    if settings.test_path is None and not settings.use_hdf5:
        train = load_set(config, "train_path", progress=progress, most=settings.max_train_samples)
        return held_out(train, settings.held_out, config.seed)[1]
    return load_set(
        config, "test_h5" if settings.use_hdf5 else "test_path", progress=progress, most=settings.max_test_samples
    )


def load_set(config: RunConfig, name: str, *, progress: Progress, most: int | None = None) -> ClipSet:
    """The clips at `dataset.<name>`, at most `most`."""
    paths = getattr(config.dataset, name)
    return load_clips(config, paths, f"dataset.{name}", progress=progress, most=most)


def noise_set(config: RunConfig, *, progress: Progress) -> ClipSet | None:
    """Noise recordings for augmentation; None if it is disabled or has no `noise_path`."""
    augment = config.dataset.augment
    if not augment.enabled or augment.noise_path is None:
        return None
    return load_clips(config, augment.noise_path, "dataset.augment.noise_path", progress=progress)


def train_loader(config: RunConfig, data: Data, engine: Engine) -> EpochLoader:
    made = augmentation(config, data.noise) if config.dataset.augment.enabled else None
    if data.stream is not None:
        settings = config.dataset
        most, fewest = (round(value * settings.sample_rate) for value in (settings.max_seconds, settings.min_seconds))
        return StreamLoader(
            data.stream,
            StreamBatching(config.train.batch_size, most, fewest, config.seed, config.geometry.fewest_samples),
            data.train.clips,
            augmentation=made,
            readers=_readers(config, engine),
            without=data.without,
        )
    blended = blend(data.train, data.windows, config.seed)
    dataset = WindowDataset(
        data.train.clips,
        data.windows,
        seed=config.seed,
        fewest_samples=config.geometry.fewest_samples,
        augmentation=made,
        blend=blended,
    )
    budget, rate = config.train.max_batch_seconds, config.dataset.sample_rate
    batching = Batching(
        config.train.batch_size,
        None if budget is None else round(budget * rate),
        shards_at_once=config.dataset.shards_at_once,
    )
    return _loader(config, dataset, batching, engine)


def augmentation(config: RunConfig, noise: ClipSet | None) -> Augmentation:
    augment = config.dataset.augment
    return Augmentation(
        config.dataset.sample_rate,
        config.geometry.fewest_samples,
        augment.p_noise,
        augment.p_mix,
        augment.snr_noise,
        augment.ratio_mix,
        None if noise is None else noise.clips,
        augment.p_pitch,
        augment.pitch_semitones,
        augment.p_reverb,
        augment.reverb_seconds,
        augment.p_speed,
        augment.speed,
    )


def fixed_loader(config: RunConfig, clips: Clips, windows: Windows, engine: Engine, *, alone: bool = False) -> Loader:
    """Loader over `windows` in order: no shuffling, no augmentation. `alone`: this rank gets all of
    them."""
    batching = Batching(config.train.batch_size, shuffle=False)
    dataset = WindowDataset(clips, windows, seed=config.seed, fewest_samples=config.geometry.fewest_samples)
    readers = _readers(config, engine)
    return Loader(dataset, batching, readers._replace(rank=0, size=1) if alone else readers)


def _loader(config: RunConfig, dataset: WindowDataset, batches: Batching, engine: Engine) -> Loader:
    return Loader(dataset, batches, _readers(config, engine))


def _readers(config: RunConfig, engine: Engine) -> Readers:
    ranks = engine.ranks
    return Readers(config.dataset.num_workers, engine.device.type == "cuda", ranks.rank, ranks.size)


def evaluation_loader(config: RunConfig, clips: Clips, engine: Engine, *, alone: bool = False) -> Loader:
    """Loader over every sample of every clip; long clips in tiles."""
    return fixed_loader(config, clips, tiling(clips, config.dataset), engine, alone=alone)
