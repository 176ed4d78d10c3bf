"""The command `buildh5ds`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from sjepa.core.errors import UserError
from sjepa.dataset.hdf5_build import Built, Stopped, build
from sjepa.dataset.hdf5_write import FileContent, check_room, is_current, progress_of, size_text
from sjepa.reporting.console import Console, duration
from sjepa.s_jepa.settings import Config
from sjepa.training.data import ClipSet
from sjepa.training.feeding import augmentation, load_set, noise_set

_SHOWN_PROBLEMS = 5


def build_files(config: Config) -> int:
    """Writes dataset.train_h5 and, if there is a test set, dataset.test_h5, after validating both.
    Returns the exit code."""
    console = Console()
    wanted = _contents(config, console)
    contents = {target: content for target, content in wanted.items() if not _is_there(content, target, console)}
    check_room(contents)
    with _told_to_stop() as received:
        for target, content in contents.items():
            done = progress_of(content, target)
            if done:
                console.note(f"{target}: resuming after {done:,} of {len(content.clips):,} clips")
            started = time.monotonic()
            try:
                built = build(
                    content,
                    target,
                    num_workers=config.dataset.num_workers,
                    progress=console.progress,
                    stop=lambda: bool(received),
                )
            except Stopped as stop:
                console.warn(
                    f"{target}: stopped by {signal.Signals(received[0]).name} with {stop.clips:,} of "
                    f"{len(content.clips):,} clips stored; run the same command to resume"
                )
                return 128 + received[0]
            _tell(built, content, time.monotonic() - started, console)
    return 0


def _contents(config: Config, console: Console) -> dict[Path, FileContent]:
    """The contents of each file to build; prints their sizes."""
    settings = config.dataset
    targets = {"train_path": Path(settings.train_h5), "test_path": Path(settings.test_h5)}
    if settings.test_path is None:
        del targets["test_path"]
        console.note("dataset.test_path: null: no test file; training holds a part out of dataset.train_path")
    if len({target.resolve() for target in targets.values()}) < len(targets):
        raise UserError(f"dataset.train_h5 and dataset.test_h5: both are {settings.train_h5}")
    contents = {}
    for name, target in targets.items():
        most = settings.max_train_samples if name == "train_path" else settings.max_test_samples
        clip_set = load_set(config, name, progress=console.progress, most=most)
        _refuse_targets(clip_set, targets.values(), f"dataset.{name}")
        if clip_set.shares is not None:
            console.warn(
                "a file stores no weights; train from a list of {path: FILE.h5, weight: …} instead of use_hdf5"
            )
        content = FileContent(clip_set.clips, clip_set.dropped, config.hdf5.sample_type, seed=config.seed)
        augment = settings.augment
        if name == "train_path" and augment.enabled and augmentation(config, None).probability > 0:
            noise = noise_set(config, progress=console.progress)
            if noise is not None:
                _refuse_targets(noise, targets.values(), "dataset.augment.noise_path")
            made = augmentation(config, noise).always()  # always augment: training applies the probability
            tile = round(settings.max_seconds * settings.sample_rate)
            content = replace(content, copies=config.hdf5.copies, augmentation=made, tile_samples=tile)
        number = content.copies
        copies = f" and {number} augmented cop{'y' if number == 1 else 'ies'} of each" if number else ""
        console.plain(f"{target}  {clip_set.describe()}{copies}: {size_text(content.bytes)} ({content.sample_type})")
        console.left_out(clip_set.remarks, clip_set.dropped)
        contents[target] = content
    return contents


def _refuse_targets(clip_set: ClipSet, targets: Iterable[Path], name: str) -> None:
    """Raises UserError if an input file is also an output file."""
    written = {target.resolve() for target in targets}
    for source in clip_set.clips.sources:
        if source.path.resolve() in written:
            raise UserError(f"{name}: {source.path} would be overwritten by what is built from it")


def _is_there(content: FileContent, target: Path, console: Console) -> bool:
    if not is_current(content, target):
        return False
    console.note(f"{target}: up to date")
    return True


def _tell(built: Built, content: FileContent, seconds: float, console: Console) -> None:
    for failure in built.problems[:_SHOWN_PROBLEMS]:
        console.warn(f"left out {failure.name}: {failure.reason}")
    if len(built.problems) > _SHOWN_PROBLEMS:
        console.warn(f"left out {len(built.problems) - _SHOWN_PROBLEMS} more")
    if built.clipped:
        console.warn(f"{built.clipped:,} samples beyond full scale were cut off; hdf5.sample_type=float32 keeps them")
    if built.partners:
        name, reason, _ = built.partners[0]
        console.warn(f"{len(built.partners)} copies are not augmented: their partner cannot be read ({name}: {reason})")
    size = f"{size_text(built.bytes)} ({built.bytes / max(1, content.samples):.3f} bytes a sample)"
    console.note(f"{built.target}: {built.clips:,} clips, {size} in {duration(seconds)}")


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Records SIGINT and SIGTERM; a second SIGINT interrupts immediately."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
