"""Loader throughput: every container with 0, 1 and 2 workers; zip resampled to 24 kHz; an epoch
from HDF5 against one decoded from zip; .tar.gz against .tar (500 MB); padding waste of length
bucketing. All data are generated."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import soundfile
import torch

from benchmarks.table import Row, median_seconds, report
from sjepa.core.progress import silent
from sjepa.dataset.clips import Clips
from sjepa.dataset.demo import write_corpus
from sjepa.dataset.hdf5_build import build
from sjepa.dataset.hdf5_write import FileContent
from sjepa.dataset.loader import Batching, Loader, Readers, WindowDataset
from sjepa.dataset.order import bucketed_batches, fixed_batches, padding_waste
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops

ARCHIVE_BYTES = 500 << 20
RATE = 16000
WORKERS = (0, 1, 2)


def write_tar(target: Path, clips: list[tuple[str, bytes]], *, at_least: int = 0) -> None:
    """Writes the clips, repeated under new names up to `at_least` bytes, as .tar or .tar.gz (by
    extension)."""
    plain = target.with_name("plain.tmp")
    with tarfile.open(plain, "w") as archive:
        written, copy = 0, 0
        while copy == 0 or written < at_least:
            for name, content in clips:
                info = tarfile.TarInfo(f"{copy:03d}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                written += len(content)
            copy += 1
    if target.name.endswith(".gz"):
        with plain.open("rb") as source, gzip.open(target, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(source, packed, 1 << 20)
        plain.unlink()
    else:
        plain.rename(target)


def loader(path: Path, workers: int, rate: int = RATE) -> Loader:
    clips = Clips([scan(source) for source in resolve_sources(str(path))], sample_rate=rate)
    dataset = WindowDataset(clips, crops(clips.length_N, 15 * rate), seed=0, fewest_samples=720)
    return Loader(dataset, Batching(8), Readers(workers))


def epoch_seconds(ours: Loader) -> float:
    """Median time of a shuffled epoch whose batches are discarded, after one warm-up epoch."""
    consume(ours.epoch(0))
    return median_seconds(lambda: consume(ours.epoch(1)))


def consume(batches: Iterable[object]) -> None:
    deque(batches, maxlen=0)


def containers(folder: Path) -> dict[str, Path]:
    """The same clips in every container."""
    write_corpus(folder, speakers=32, clips=30)
    paths = {"zip": folder / "train.zip"}
    with zipfile.ZipFile(paths["zip"]) as archive:
        clips = [(name, archive.read(name)) for name in archive.namelist()]
        archive.extractall(folder / "clips")
    paths |= {"folder": folder / "clips", "tar": folder / "a.tar", "tar.gz": folder / "b.tar.gz", "h5": folder / "a.h5"}
    write_tar(paths["tar"], clips)
    write_tar(paths["tar.gz"], clips)
    build(FileContent(loader(paths["zip"], 0).dataset.clips, []), paths["h5"], num_workers=2, progress=silent)
    return paths


def throughput(paths: dict[str, Path]) -> dict[tuple[str, int], float]:
    """Prints seconds of audio loaded per second; returns seconds per epoch."""
    files = sorted(paths["folder"].rglob("*.flac"))
    audio = loader(paths["zip"], 0).epoch_samples / RATE
    plain = median_seconds(lambda: consume(soundfile.read(path, dtype="float32") for path in files))
    print(f"{len(files)} clips, {audio:.0f} s. Seconds of audio per second; soundfile.read alone: {audio / plain:,.0f}")
    times = {}
    print(f"{'':<8}" + "".join(f"{workers:>10} workers" for workers in WORKERS))
    for name, path in paths.items():
        for workers in WORKERS:
            times[name, workers] = epoch_seconds(loader(path, workers))
        print(f"{name:<8}" + "".join(f"{audio / times[name, workers]:>18,.0f}" for workers in WORKERS))
    resampled = (audio / epoch_seconds(loader(paths["zip"], workers, 24000)) for workers in WORKERS)
    print(f"{'24 kHz':<8}" + "".join(f"{rate:>18,.0f}" for rate in resampled))
    return times


def measure() -> list[Row]:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        paths = containers(Path(folder))
        times = throughput(paths)
        with h5py.File(paths["h5"]) as file:
            sample_bytes = 2 * file["samples"].size
        size = paths["h5"].stat().st_size
        lengths = loader(paths["zip"], 0).dataset.windows.length_N
        with zipfile.ZipFile(paths["zip"]) as archive:
            clips = [(name, archive.read(name)) for name in archive.namelist()]
        large = {name: Path(folder) / f"large.{name}" for name in ("tar", "tar.gz")}
        for path in large.values():
            write_tar(path, clips, at_least=ARCHIVE_BYTES)
        tar, targz = (epoch_seconds(loader(large[name], 2)) for name in ("tar", "tar.gz"))
    rng = np.random.default_rng(0)
    varied = (rng.gamma(4.0, 1.5, 5000) * RATE + 8000).astype(np.int64).clip(max=15 * RATE)
    bucketed = padding_waste(bucketed_batches(varied, 60 * RATE, seed=0, epoch=0), varied)
    random = padding_waste(fixed_batches(len(varied), 8, seed=0, epoch=0), varied)
    waste = padding_waste(bucketed_batches(lengths, 60 * RATE, seed=0, epoch=0), lengths)
    print(f"generated corpus in batches of at most 60 s: padding {waste:.1%}")
    return [
        Row.speedup("hdf5_epoch", times["h5", 0], times["zip", 0], 8.0),
        Row.value("hdf5_size", size, sample_bytes, size / sample_bytes, 1.02),
        Row.value("targz_epoch", targz, tar, targz / tar, 2.0),
        Row.value("padding_waste", bucketed, random, bucketed, 0.05),
    ]


if __name__ == "__main__":
    report(measure, __doc__)
