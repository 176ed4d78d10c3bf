"""buildh5ds as a user runs it, and training from what it makes."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sjepa.core.errors import UserError
from sjepa.dataset import hdf5_write
from sjepa.dataset.clips import Clips
from sjepa.entrypoints import build_h5
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.weights import load_weights
from tests.support.commands import BIN
from tests.support.runs import history, run


def settings(corpus, root, *overrides):
    return [
        f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}", "dataset.augment.enabled=false",
        f"dataset.train_h5={root / 'h5/train.h5'}", f"dataset.test_h5={root / 'h5/test.h5'}", f"runs_root={root}",
        "dataset.num_workers=0", *overrides,
    ]  # fmt: skip


def build(corpus, root, *overrides):
    return build_h5.build_files(load_config(None, settings(corpus, root, *overrides)))


@pytest.mark.slow
def test_a_run_from_the_files_is_the_run_from_the_archives(corpus, tmp_path, capsys):
    """The recordings have 16 bits, so nothing is rounded: augmentation, crops, mixture and weights
    are the same bits."""
    assert build(corpus, tmp_path) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path / 'h5/train.h5'}  18 clips, 0.01 h:" in told
    files = [f"dataset.{name}_h5={tmp_path / f'h5/{name}.h5'}" for name in ("train", "test")]
    assert run(corpus, tmp_path / "archive", "train.epochs=2") == 0
    nowhere = ["dataset.train_path=nowhere.zip", "dataset.test_path=nowhere.zip"]
    assert run(corpus, tmp_path / "h5run", "train.epochs=2", "dataset.use_hdf5=true", *files, *nowhere) == 0
    first, second = (
        load_weights(tmp_path / kind / "r/train/weights/last.pt").model.state_dict() for kind in ("archive", "h5run")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, other = (history(tmp_path / kind / "r/train") for kind in ("archive", "h5run"))
    assert [row["train_loss"] for row in one] == [row["train_loss"] for row in other]


def test_what_is_there_is_not_built_again_unless_the_source_changed(corpus, tmp_path, capsys):
    assert build(corpus, tmp_path) == 0
    before = (tmp_path / "h5/train.h5").stat().st_mtime_ns
    capsys.readouterr()
    assert build(corpus, tmp_path) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert build(corpus, tmp_path, "dataset.max_train_samples=5") == 0
    told = capsys.readouterr().out
    assert "train.h5: 5 clips" in told
    assert "test.h5: up to date" in told
    assert (tmp_path / "h5/train.h5").stat().st_mtime_ns != before


@pytest.mark.slow
def test_without_a_test_set_there_is_one_file_and_training_holds_a_part_of_it_out(corpus, tmp_path, capsys):
    assert build(corpus, tmp_path, "dataset.test_path=null") == 0
    assert [path.name for path in (tmp_path / "h5").iterdir()] == ["train.h5"]
    assert "no test file" in capsys.readouterr().out
    data = [f"dataset.train_path={tmp_path / 'h5/train.h5'}", "dataset.test_path=null", "dataset.held_out=0.2"]
    assert run(corpus, tmp_path, "train.epochs=1", *data) == 0


@pytest.mark.slow
def test_copies_are_made_when_augmentation_is_on(corpus, tmp_path, capsys):
    assert build(corpus, tmp_path, "dataset.augment.enabled=true", "hdf5.copies=2") == 0
    assert "18 clips, 0.01 h and 2 augmented copies of each" in capsys.readouterr().out
    files = [f"dataset.{name}_h5={tmp_path / f'h5/{name}.h5'}" for name in ("train", "test")]
    assert run(corpus, tmp_path / "r", "train.epochs=1", "dataset.use_hdf5=true", *files) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.test_h5={root}/h5/train.h5"], "dataset.train_h5 and dataset.test_h5: both are"),
        (["dataset.train_path=nowhere"], "nowhere: no such file or folder"),
        (["dataset.train_h5=/dev/null/a.h5"], "/dev/null/a.h5: its folder cannot be made"),
        (["dataset.train_h5={root}/a.bin"], r"a\.bin: not a plain name that ends in \.h5 or \.hdf5"),
        (["dataset.train_h5={root}/[a].h5"], "not a plain name"),
        (["dataset.train_h5={root}/folder.h5"], r"folder\.h5: is a folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(corpus, tmp_path, overrides, message):
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(UserError, match=message):
        build(corpus, tmp_path, *(text.format(root=tmp_path) for text in overrides))
    assert not list(tmp_path.glob("h5/*"))


@pytest.mark.parametrize("key", ["test_path", "augment.noise_path"])
def test_what_is_read_is_never_overwritten(corpus, tmp_path, key):
    """The target of one set is the source of another."""
    assert build(corpus, tmp_path) == 0
    before = (tmp_path / "h5/train.h5").read_bytes()
    options = [
        f"dataset.{key}={tmp_path / 'h5/train.h5'}",
        "dataset.augment.enabled=true",
        "dataset.max_train_samples=3",
    ]
    with pytest.raises(UserError, match=rf"dataset\.{key}: .*train\.h5 would be overwritten by what is built from it"):
        build(corpus, tmp_path, *options)
    assert (tmp_path / "h5/train.h5").read_bytes() == before


def test_weights_are_said_to_be_left_out(corpus, tmp_path, capsys):
    paths = (
        f"dataset.train_path=[{{path: {corpus / 'train.zip'}, weight: 2}}, {{path: {corpus / 'test.zip'}, weight: 1}}]"
    )
    assert build(corpus, tmp_path, paths) == 0
    assert "a file stores no weights" in capsys.readouterr().out


def test_nothing_to_store_is_an_error(corpus, tmp_path):
    wave = np.zeros(48000, np.float32)
    wave[24000] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"train\.h5: not one of 1 clips could be decoded .*not finite numbers"):
        build(corpus, tmp_path, f"dataset.train_path={tmp_path}")
    assert list((tmp_path / "h5").iterdir()) == []


def processes_of(group):
    """Those of a process group that still run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (place / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(place.name))
    return found


@pytest.fixture
def slow(corpus, tmp_path):
    """A build that takes a while, in a process group of its own; each clip is a minute long."""
    (tmp_path / "long").mkdir()
    for number in range(300):
        place = tmp_path / f"long/{number:03d}.flac"
        if number:
            place.hardlink_to(tmp_path / "long/000.flac")
        else:
            soundfile.write(place, 0.1 * np.random.default_rng(0).standard_normal(60 * 44100), 44100)
    options = settings(
        corpus, tmp_path, f"dataset.train_path={tmp_path / 'long'}", "dataset.num_workers=2", "dataset.validate=header"
    )
    process = subprocess.Popen(
        [BIN / "buildh5ds", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process, options
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_build_leaves_nobody_behind(slow, tmp_path):
    process, _ = slow
    wait(lambda: len(processes_of(process.pid)) >= 3 and (tmp_path / "h5/train.h5.partial").exists())
    time.sleep(2)  # its workers are ahead, and wait for it to take what they have
    process.kill()
    wait(lambda: not processes_of(process.pid), seconds=20)
    with hdf5_write.locked(tmp_path / "h5/train.h5"):
        pass  # and the lock is free


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_line(slow):
    process, _ = slow
    wait(lambda: len(processes_of(process.pid)) >= 3)
    time.sleep(1)
    os.kill(max(processes_of(process.pid)), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.strip().splitlines()
    assert "dataset.num_workers: a data loading worker was killed" in line
    assert line.endswith("Run it again to go on")


def test_too_little_room_is_told_with_both_figures(corpus, tmp_path, monkeypatch):
    """Of both files together, where they lie on one disk."""
    free = type("Usage", (), {"free": 1_200_000})
    monkeypatch.setattr(hdf5_write.shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"train\.h5 and .*test\.h5: 1\.6 MB are needed and 1\.2 MB are free"):
        build(corpus, tmp_path)


def test_an_unbuilt_file_says_what_to_do(corpus, tmp_path):
    with pytest.raises(UserError, match=r"none\.h5: no such file or folder; buildh5ds makes it"):
        run(corpus, tmp_path, "dataset.use_hdf5=true", f"dataset.train_h5={tmp_path / 'none.h5'}")


def test_an_interrupted_build_says_how_it_goes_on(corpus, tmp_path, monkeypatch, capsys):
    original, reads = Clips.read, iter(range(1000))

    def interrupted(self, position, **window):
        if next(reads) == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, position, **window)

    monkeypatch.setattr(Clips, "read", interrupted)
    assert build(corpus, tmp_path) == 143
    assert "stopped by SIGTERM with" in capsys.readouterr().out
    assert build(corpus, tmp_path) == 0
    assert "resuming after" in capsys.readouterr().out


def test_the_command_builds_the_files_without_a_word_on_standard_error(corpus, tmp_path):
    done = subprocess.run(
        [BIN / "buildh5ds", *settings(corpus, tmp_path, "dataset.num_workers=1")], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "h5/test.h5").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_clips(corpus, tmp_path):
    """Fewer of them: said as that, and not as a plan that has become too short."""
    files = [
        "dataset.use_hdf5=true",
        *(f"dataset.{name}_h5={tmp_path / f'h5/{name}.h5'}" for name in ("train", "test")),
    ]
    assert build(corpus, tmp_path) == 0
    assert run(corpus, tmp_path, *files, "train.epochs=2") == 0
    assert build(corpus, tmp_path, "dataset.max_train_samples=4") == 0
    with pytest.raises(UserError, match=r"checkpoint\.resume: the training set is not the one this run was made on"):
        run(corpus, tmp_path, *files, "train.epochs=3", "checkpoint.resume=true")
