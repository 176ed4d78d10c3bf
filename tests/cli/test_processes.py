"""One run in several processes, as a user starts it: by itself, by torchrun, by SLURM."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sjepa.core.distributed import Engine, Processes
from sjepa.core.errors import UserError
from sjepa.s_jepa.weights import load_weights
from tests.support import commands
from tests.support.commands import BIN
from tests.support.processes import free_port, torchrun_variables
from tests.support.runs import LOG_MEL, RUN, TWO_PHASES

# 18 clips make 9 micro-batches, 5 updates an epoch; the last update of each has a micro-batch for
# one process alone
SHARED = ["train.batch_size=2", "train.epochs=8", "train.phase2_start_epoch=4", "train.masked_only_step=32", "model.overrides.layer_drop=0.2"]  # fmt: skip


def arguments(corpus, *overrides):
    paths = [f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}"]
    return [*RUN, *TWO_PHASES, *SHARED, *paths, "device=cpu", *overrides]


def start(arguments, cwd, **environment):
    return commands.start("trainsjepa", *arguments, cwd=cwd, **environment)


def start_both(arguments, cwd):
    """Two processes of one run, as a launcher starts them, without the time that it takes."""
    return [start(arguments, cwd, **variables) for variables in torchrun_variables(2)]


def finished(process, code=0):
    """Standard output of a process that must end with that exit code."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, output + errors
    return output


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    finished(start(arguments(corpus, "train.grad_accum=2"), root))
    return root / "runs/r/train"


@pytest.fixture(scope="module")
def together(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    process = start(arguments(corpus, "train.grad_accum=1", "train.devices=2"), root)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")  # libraries keep their remarks to themselves
    return root / "runs/r/train", output


def flat(module):
    return torch.cat([value.flatten().double() for value in module.state_dict().values() if value.is_floating_point()])


def assert_near(a, b, tolerance):
    assert (flat(a) - flat(b)).norm() <= tolerance * flat(b).norm()


def assert_same_training(a, b, tolerance=1e-5):
    """The same but for rounding: sums over processes are made in another order."""
    for name in ("best_phase1.pt", "last.pt"):
        first, second = load_weights(a / "weights" / name), load_weights(b / "weights" / name)
        assert_near(first.model, second.model, tolerance)
        assert_near(first.gmm, second.gmm, tolerance)
    assert_near(first.target_encoder, second.target_encoder, tolerance)
    with (a / "history.csv").open() as one, (b / "history.csv").open() as other:
        for row, expected in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
            for name in ("epoch", "phase", "lr", "active_layer", "reseeded"):
                assert row[name] == expected[name], (row["epoch"], name)
            for name in (
                "train_loss",
                "val_loss",
                "train_kl",
                "val_kl",
                "train_entropy_bits",
                "clusters_used",
                "audio_hours",
            ):
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=tolerance), (row["epoch"], name)
            for name in ("erank_0", "erank_1", "spread_1"):
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3), (row["epoch"], name)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(alone, together):
    """20 updates in each phase and across both switches, with layer drop, dropout, crops and
    augmentation."""
    assert_same_training(together[0], alone)


SMALL_DATA = {
    "log-mel": [*LOG_MEL, "model.predictor_positions=convolution", "optimizer.layer_decay=0.9"],
    "waveform": ["train.spectral_warmup=0.25"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL_DATA)
def test_two_processes_train_from_little_audio_as_one_does(corpus, tmp_path, kind):
    """Statistics of the corpus, projections, a temperature, targets in rounds, a head that is used
    for a while alone: what each process measures of its share is put together. Sums in another
    order turn a projection by some 1e-5."""
    finished(start(arguments(corpus, *SMALL_DATA[kind], "train.grad_accum=2", "runs_root=runs1"), tmp_path))
    both = start_both(arguments(corpus, *SMALL_DATA[kind], "train.grad_accum=1", "runs_root=runs2"), tmp_path)
    assert [bool(finished(process)) for process in both] == [True, False]
    assert_same_training(tmp_path / "runs2/r/train", tmp_path / "runs1/r/train", tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [("fsdp", "deepspeed")])
def test_state_in_pieces_trains_the_same_and_a_checkpoint_is_whole(corpus, alone, tmp_path, strategies):
    """Stopped in the first phase, on in other pieces to the second, and on to the end in one
    process."""
    for strategy, until in zip((*strategies, "auto"), ("epoch 1 step", "epoch 5 step", None), strict=True):
        options = ["train.grad_accum=1", "train.log_every=1", f"train.strategy={strategy}", "checkpoint.resume=true"]
        given = arguments(corpus, *options)
        both = start_both(given, tmp_path) if until else [start(given, tmp_path)]
        for line in both[0].stdout if until else ():
            if until in line:
                both[0].send_signal(signal.SIGTERM)
                break
        for number, process in enumerate(both):
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (143 if until and number == 0 else 0, "")
    assert_same_training(tmp_path / "runs/r/train", alone)


@pytest.mark.slow
def test_one_of_them_speaks_and_writes(together):
    folder, output = together
    assert [path.name for path in folder.parent.iterdir() if path.name != "cache"] == ["train"]
    assert len(list((folder / "logs").iterdir())) == 1
    assert output.count("epoch 0 done") == 1
    assert "2 clips × 1 accumulated × 2 devices: about 4 clips" in output
    assert "2 × cpu, fp32" in output


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_what_two_began_goes_on_in_any_number(corpus, alone, tmp_path, devices):
    both = start_both(arguments(corpus, "train.grad_accum=1", "train.log_every=1"), tmp_path)
    for line in both[0].stdout:
        if "epoch 4 step" in line:  # in phase 2
            both[devices - 1].send_signal(signal.SIGTERM)
            break
    assert "checkpoint.resume=true resumes it" in finished(both[0], 143)
    finished(both[1])
    again = arguments(corpus, "train.grad_accum=1", "checkpoint.resume=true")
    both = start_both(again, tmp_path) if devices == 2 else [start(again, tmp_path)]
    output, *_ = [finished(process) for process in both]
    assert re.search(r"resumed from epoch_00[4-7]", output)
    assert f"2 clips × {2 // devices} accumulated" in output
    assert_same_training(tmp_path / "runs/r/train", alone)


@pytest.mark.slow
def test_a_number_that_cannot_share_the_batch_is_refused(corpus, together, tmp_path):
    root = together[0].parents[2]
    process = start(arguments(corpus, "train.grad_accum=1", "train.devices=3", "checkpoint.resume=true"), root)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.strip() == (
        "trainsjepa: train.devices: 3 processes cannot share the 2 micro-batches that make one update of the run to be resumed"
    )


@pytest.mark.slow
def test_a_mistake_is_told_once(corpus, tmp_path):
    process = start(arguments(corpus, "train.devices=2", "dataset.train_path=nowhere.zip"), tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.strip() == "trainsjepa: nowhere.zip: no such file or folder"


@pytest.mark.slow
def test_torchrun_starts_the_processes(corpus, tmp_path):
    short = arguments(corpus, "train.epochs=1", "train.phase2_start_epoch=-1", "train.masked_only_step=null")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]

    def launched(*more):
        return subprocess.run(
            [*launch, str(BIN / "trainsjepa"), *short, *more], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = launched()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 0 done") == 1
    assert "× 2 devices" in done.stdout
    errors = start_both([*short, "train.devices=3"], tmp_path)[0].communicate(timeout=120)[1]
    assert "train.devices: 3 on train.num_nodes: 1, but torchrun started 2 on each of 1" in errors


def slurm_tasks():
    """What SLURM tells each of two tasks of one job on one machine."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_STEP_ID": "0",
           "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # fmt: skip
    return [job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]


@pytest.mark.slow
def test_slurm_starts_the_processes_and_gets_the_job_back(corpus, tmp_path):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    tasks = [
        start(arguments(corpus, "train.grad_accum=1", "train.log_every=1"), tmp_path, PATH=path, **variables)
        for variables in slurm_tasks()
    ]
    for line in tasks[0].stdout:
        if "epoch 1 step" in line:
            tasks[1].send_signal(signal.SIGUSR1)
            break
    assert "job 1234 is back in the queue" in finished(tasks[0])
    assert finished(tasks[1]) == ""
    assert (tmp_path / "asked").read_text() == "requeue 1234\n"
    assert list((tmp_path / "runs/r/train/checkpoints").glob("epoch_001_step_*.pth"))


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, Processes(1, 1)),
        (
            {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"},
            Processes(1, 1),
        ),  # a batch script without srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, Processes(1, 1)),
        (
            {"SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"},
            Processes(4, 2),
        ),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}, Processes(3, 2)),
    ],
)
def test_the_launcher_decides_how_many_there_are(monkeypatch, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Engine(device="cpu", precision="fp32", launch=False).processes == found
    if found.total > 1:
        assert Engine(device="cpu", precision="fp32", processes=found, launch=False).processes == found
        with pytest.raises(UserError, match=r"train.devices: 7 .* started"):
            Engine(device="cpu", precision="fp32", processes=Processes(7), launch=False)


def test_slurm_tasks_must_be_counted_per_node(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        Engine(device="cpu", precision="fp32", launch=False)


def children(process_id):
    return [int(word) for word in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def second_process(process):
    """The one that the first started to share its run (it also starts processes that read audio)."""
    return next(
        child for child in children(process.pid) if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes()
    )


def started_and_training(corpus, root, *overrides):
    long = ["train.devices=2", "train.grad_accum=1", "train.epochs=400", "train.log_every=1", *overrides]
    process = start(arguments(corpus, *long), root)
    next(line for line in process.stdout if "epoch 1 step" in line)
    return process


@pytest.mark.slow
def test_what_one_process_alone_knows_is_told(corpus, tmp_path):
    process = started_and_training(corpus, tmp_path, "dataset.num_workers=1")
    os.kill(children(second_process(process))[0], signal.SIGKILL)  # the reader of the second process
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "process 1 of 2: dataset.num_workers: a data loading worker was killed" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_nobody_is_left_behind(corpus, tmp_path):
    process = started_and_training(corpus, tmp_path)
    second = second_process(process)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert errors == ""  # it ends because the first one is gone, not by a connection that broke
    deadline = time.monotonic() + 20
    while Path(f"/proc/{second}/cmdline").exists() and Path(f"/proc/{second}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_what_fails_in_the_main_process_is_told_once(corpus, together):
    folder, _ = together
    table = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(table.replace("0,1,", "x,1,", 1))
    again = arguments(corpus, "train.grad_accum=1", "train.devices=2", "train.epochs=9", "checkpoint.resume=true")
    process = start(again, folder.parents[2])
    _, errors = process.communicate(timeout=120)
    (folder / "history.csv").write_text(table)
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "history.csv: damaged" in errors


def test_machines_need_a_launcher():
    with pytest.raises(UserError, match="torchrun or SLURM"):
        Engine(device="cpu", precision="fp32", processes=Processes(1, 2), launch=False)


@pytest.mark.parametrize(
    ("described", "chosen"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", "fp32"),  # AMX hidden
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", "bf16"),
        ("vendor_id : AuthenticAMD\nflags : avx2", "fp32"),
        ("CPU implementer : 0x41\nFeatures : asimd bf16", "bf16"),
        (None, "fp32"),
    ],
)
def test_auto_precision_is_the_faster_one_of_the_processor(monkeypatch, tmp_path, described, chosen):
    if described:
        (tmp_path / "cpuinfo").write_text(described)
    monkeypatch.setattr("sjepa.core.distributed._CPU_DESCRIPTION", tmp_path / "cpuinfo")
    assert Engine(device="cpu", precision="auto", launch=False).precision == chosen


def test_half_precision_does_not_go_with_fsdp():
    with pytest.raises(UserError, match=r"fp16 does not go with train\.strategy: fsdp"):
        Engine(device="cpu", precision="fp16", strategy="fsdp", launch=False)


def test_processes_that_see_other_clips_are_refused(corpus, tmp_path):
    tasks = [
        start(
            arguments(
                corpus, "train.grad_accum=1", f"dataset.max_train_samples={clips}", "train.masked_only_step=null"
            ),
            tmp_path,
            **variables,
        )
        for clips, variables in zip((18, 12), slurm_tasks(), strict=True)
    ]
    told = [task.communicate(timeout=120)[1].strip() for task in tasks]
    assert told == [
        "trainsjepa: dataset.train_path: the processes see different clips; give all machines the same files",
        "",
    ]
    assert [task.returncode for task in tasks] == [2, 0]
    assert not list((tmp_path / "runs/r").glob("train*"))


def test_deepspeed_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'sjepa\[deepspeed\]'"):
        Engine(device="cpu", precision="fp32", strategy="deepspeed", processes=Processes(2), launch=False)
    Engine(device="cpu", precision="fp32", strategy="deepspeed", launch=False)  # one process needs no such thing


def test_deepspeeds_launcher_says_how_many_there_are(monkeypatch):
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Engine(device="cpu", precision="fp32", launch=False).processes == Processes(2, 2)
    with pytest.raises(UserError, match="deepspeed started 2 on each of 2"):
        Engine(device="cpu", precision="fp32", processes=Processes(3), launch=False)
