"""An epoch from .tar.gz against the same from .tar (500 MB, built on the spot), and what bucketing leaves of padding."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import Row, median_seconds, report
from sjepa.dataset.clips import Clips
from sjepa.dataset.demo import write_corpus
from sjepa.dataset.loader import BatchPlan, Loader, WindowDataset
from sjepa.dataset.manifest import scan
from sjepa.dataset.order import bucketed_batches, fixed_batches, padding_waste
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops

ARCHIVE_BYTES = 500 << 20


def build(folder: Path) -> tuple[Path, Path]:
    """The generated corpus, repeated under other names, as .tar and .tar.gz."""
    write_corpus(folder, speakers=16, clips=25)
    with zipfile.ZipFile(folder / "train.zip") as archive:
        clips = [(name, archive.read(name)) for name in archive.namelist()]
    plain, packed = folder / "data.tar", folder / "packed.tar.gz"
    with tarfile.open(plain, "w") as archive_out:
        written, copy = 0, 0
        while written < ARCHIVE_BYTES:
            for name, content in clips:
                info = tarfile.TarInfo(f"{copy:03d}/{name}")
                info.size = len(content)
                archive_out.addfile(info, io.BytesIO(content))
                written += len(content)
            copy += 1
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return plain, packed


def epoch_of(path: Path) -> tuple[Loader, int]:
    clips = Clips([scan(source) for source in resolve_sources(str(path))], sample_rate=16000)
    dataset = WindowDataset(clips, crops(clips.length_N, 15 * 16000), seed=0)
    return Loader(dataset, BatchPlan(8), num_workers=2), len(clips)


def measure() -> list[Row]:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = build(Path(folder))
        (tar, clips), (targz, _) = epoch_of(plain), epoch_of(packed)
        print(f"{clips:,} clips, {packed.stat().st_size / 1e6:.0f} MB compressed")
        times = {
            name: median_seconds(lambda loader=loader: list(loader.epoch(0)))
            for name, loader in (("tar", tar), ("targz", targz))
        }
        lengths = tar.dataset.windows.length_N
    rng = np.random.default_rng(0)
    varied = (rng.gamma(4.0, 1.5, 5000) * 16000 + 8000).astype(np.int64).clip(max=15 * 16000)
    bucketed = padding_waste(bucketed_batches(varied, 60 * 16000, seed=0, epoch=0), varied)
    random = padding_waste(fixed_batches(len(varied), 8, seed=0, epoch=0), varied)
    waste = padding_waste(bucketed_batches(lengths, 60 * 16000, seed=0, epoch=0), lengths)
    print(f"generated corpus in batches of at most 60 s: padding {waste:.1%}")
    return [
        Row.value("targz_epoch", times["targz"], times["tar"], times["targz"] / times["tar"], 2.0),
        Row.value("padding_waste", bucketed, random, bucketed, 0.05),
    ]


if __name__ == "__main__":
    report(measure, __doc__)
