"""What must not lose a run: kills, a full disk, damaged files, data that vanish, workers that die.

Runs are made in processes forked from one that has imported everything, so that a start costs no
seconds.
"""

import contextlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sjepa.core.errors import UserError
from tests.support import runs
from tests.support.runs import TWO_PHASES, assert_same_run, history
from tests.tokenizer import runs as token_runs

pytestmark = pytest.mark.slow

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.support.runs", "tests.tokenizer.runs", "sjepa.reporting.plots"])
LONG = [*TWO_PHASES, "train.epochs=10", "train.phase2_start_epoch=4", "train.masked_only_step=20"]
TOKENIZER = ["run_name=r", "train.epochs=10", "train.spectral_warmup=0.5", "checkpoint.shards=true"]
DECODER = ["run_name=r", "train.epochs=4", "checkpoint.shards=true", "decoder.disc_start_step=3"]


def work(run, corpus, root, log, overrides, prepare, *arguments):
    """Runs in a process of its own: output to a file, mistakes as the commands tell them."""
    torch.set_num_threads(1)
    with Path(log).open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if prepare:
        prepare(*arguments)
    try:
        code = run(corpus, root, *overrides)
    except UserError as error:
        print(f"told: {error}", flush=True)
        code = 2
    os._exit(code)


def begin(corpus, root, *overrides, run=runs.run, prepare=None, arguments=()):
    process = processes.Process(target=work, args=(run, corpus, root, root / "output", overrides, prepare, *arguments))
    process.start()
    return process


def decode(corpus, root, *overrides):
    """Stage 2 on an encoder that was not trained."""
    return token_runs.decode(corpus, root, "decoder.encoder=untrained", *overrides)


def ended(process, code):
    process.join(300)
    assert process.exitcode == code


def checkpoints(root):
    return sorted((root / "r/train/checkpoints").glob("epoch*.pth"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("run", "long", "kills"), [(runs.run, LONG, 6), (token_runs.run, TOKENIZER, 4), (decode, DECODER, 3)]
)
def test_a_run_killed_many_times_ends_as_if_it_never_was(corpus, tmp_path, run, long, kills):
    """Every update is saved, so that many kills hit a file that is being written."""
    options = [*long, "checkpoint.ckpt_step=1", "checkpoint.max_checkpoint=2"]
    reference, root = tmp_path / "reference", tmp_path / "killed"
    reference.mkdir()
    root.mkdir()
    ended(begin(corpus, tmp_path, "train.epochs=1", run=run), 0)  # whoever comes first waits for the imports
    started = time.monotonic()
    ended(begin(corpus, reference, *options, run=run), 0)
    whole = time.monotonic() - started  # kills come at random in the first third of that, however fast the machine
    rng, went_on = random.Random(0), 0
    for _ in range(kills):
        newest = [path.name for path in checkpoints(root)[-1:]]
        output = root / "output"
        seen = output.stat().st_size if output.exists() else 0
        process = begin(corpus, root, *options, "checkpoint.resume=true", run=run)
        time.sleep(rng.uniform(0.02, 0.35) * whole)
        process.kill()
        process.join()
        said = output.read_text()[seen:] if output.exists() else ""
        found = re.findall(r"resumed from (\S+):", said)
        assert found in ([], newest)
        assert "ignored: " not in said
        went_on += bool(found)
        for path in [*root.rglob("epoch*.pth"), *root.rglob("[a-z]*.pt")]:
            torch.load(path, weights_only=True)  # whole, whatever the moment
        if (root / "r/train/results.csv").exists():  # it was over before the kill: another one
            shutil.rmtree(root / "r")
    assert went_on > kills / 4
    ended(begin(corpus, root, *options, "checkpoint.resume=true", run=run), 0)
    assert_same_run(reference / "r/train", root / "r/train")


def limit_files(size):
    """A limit on the size of files, from the first one that would be larger on."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def assert_told_and_nothing_lost(root, name):
    assert re.search(rf"told: .*{name}.*: cannot be written", (root / "output").read_text())
    (before,) = checkpoints(root)
    torch.load(before, weights_only=True)
    assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize(("run", "options"), [(runs.run, []), (token_runs.run, ["run_name=r"]), (decode, DECODER)])
def test_a_full_disk_is_told_and_the_run_goes_on_where_there_is_room(corpus, tmp_path, run, options):
    """A limit on the size of files stands in for the disk."""
    ended(begin(corpus, tmp_path, *options, "train.epochs=1", run=run), 0)
    size = checkpoints(tmp_path)[0].stat().st_size
    again = [*options, "train.epochs=3", "checkpoint.resume=true"]
    # weights are smaller than a checkpoint, which also holds the moments
    ended(begin(corpus, tmp_path, *again, run=run, prepare=limit_files, arguments=(size - 1,)), 2)
    assert_told_and_nothing_lost(tmp_path, "epoch_001.pth")
    ended(begin(corpus, tmp_path, *again, run=run), 0)
    assert len(history(tmp_path / "r/train")) == 3


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a disk ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full_is_told_and_leaves_whole_checkpoints(corpus, tmp_path):
    ended(begin(corpus, tmp_path, "train.epochs=1"), 0)
    size = checkpoints(tmp_path)[0].stat().st_size
    with small_disk(tmp_path / "disk", size * 5 // 2) as disk:
        shutil.copytree(tmp_path / "r/train/checkpoints", disk / "r/train")
        options = ["train.epochs=4", "checkpoint.resume=true", f"checkpoint.dir={disk}"]
        ended(begin(corpus, tmp_path, *options), 2)
        assert re.search(r"told: .*epoch_00\d.pth: cannot be written", (tmp_path / "output").read_text())
        left = sorted(path.name for path in (disk / "r/train").iterdir())
        assert left == ["epoch_000.pth", "epoch_001.pth"]
        for name in left:
            torch.load(disk / "r/train" / name, weights_only=True)


def test_damaged_and_incomplete_checkpoints_are_named_and_passed_over(corpus, tmp_path):
    options = ["train.epochs=3", "checkpoint.max_checkpoint=5"]
    reference, root = tmp_path / "reference", tmp_path / "damaged"
    for folder in (reference, root):
        folder.mkdir()
        ended(begin(corpus, folder, *options), 0)
    _, second, third = checkpoints(root)
    third.write_bytes(third.read_bytes()[:-1000])
    content = torch.load(second, weights_only=True)
    del content["parts"]["targets"]  # the mixture among them
    torch.save(content, second)
    ended(begin(corpus, root, *options, "checkpoint.resume=true"), 0)
    output = (root / "output").read_text()
    assert re.search(r"ignored: .*epoch_002.pth: not a file of sjepa checkpoint, or damaged", output)
    assert re.search(r"ignored: .*epoch_001.pth: incomplete, without targets", output)
    assert "resumed from epoch_000.pth" in output
    assert_same_run(reference / "r/train", root / "r/train")


def test_files_that_disappear_stop_the_run_with_its_state_saved(corpus, tmp_path):
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        archive.extractall(tmp_path / "clips")
    options = [f"dataset.train_path={tmp_path / 'clips'}", "train.epochs=400", "train.log_every=1"]
    process = begin(corpus, tmp_path, *options)
    wait_for(tmp_path, "epoch 1 step")
    shutil.move(tmp_path / "clips", tmp_path / "elsewhere")
    ended(process, 2)
    output = (tmp_path / "output").read_text()
    assert "skipped" in output
    assert re.search(r"told: \d+ of 18 clips could not be read in this epoch .* The state is saved", output)
    shutil.move(tmp_path / "elsewhere", tmp_path / "clips")
    epochs = len(history(tmp_path / "r/train")) + 2
    ended(begin(corpus, tmp_path, *options, f"train.epochs={epochs}", "checkpoint.resume=true"), 0)


def wait_for(root, text):
    deadline = time.monotonic() + 120
    while text not in ((root / "output").read_text() if (root / "output").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_told_and_the_run_goes_on_later(corpus, tmp_path):
    options = ["train.epochs=400", "train.log_every=1", "dataset.num_workers=1"]
    process = begin(corpus, tmp_path, *options)
    wait_for(tmp_path, "epoch 1 step")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    ended(process, 2)
    assert "told: dataset.num_workers: a data loading worker was killed" in (tmp_path / "output").read_text()
    epochs = len(history(tmp_path / "r/train")) + 1
    ended(begin(corpus, tmp_path, *options, f"train.epochs={epochs}", "checkpoint.resume=true"), 0)


def test_a_clip_of_not_a_number_is_dropped_and_counted(corpus, tmp_path):
    """In an archive whose cache says that all is well: it is found when its turn comes."""
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        archive.extractall(tmp_path / "clips")
    victim = sorted((tmp_path / "clips").rglob("*.flac"))[0]
    soundfile.write(victim.with_suffix(".wav"), np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    victim.unlink()
    ended(begin(corpus, tmp_path, f"dataset.train_path={tmp_path / 'clips'}", "dataset.validate=header"), 0)
    output = (tmp_path / "output").read_text()
    assert re.search(rf"skipped .*{victim.stem}.wav: samples that are not finite numbers", output)
    assert [row["unreadable_clips"] for row in history(tmp_path / "r/train")] == ["1", "1"]
