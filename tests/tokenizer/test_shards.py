"""DeepSpeed's checkpoint layout: written with and without it, and consolidated into one file."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sjepa.core.errors import UserError
from sjepa.tokenizer.convert import convert
from sjepa.tokenizer.weights import load_weights
from tests.support import commands
from tests.support.commands import BIN
from tests.support.processes import free_port, torchrun_variables
from tests.tokenizer.runs import SMALL, run

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'sjepa[deepspeed]'"
)
ROOT = Path(__file__).parents[2]
SHARDS = ["checkpoint.shards=true", "train.epochs=3", "checkpoint.max_checkpoint=2"]
DS = {"gradient_clipping": 1.0, "bf16": {"enabled": False}, "zero_optimization": {"stage": 2}}


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    assert run(corpus, root, *SHARDS) == 0
    return root


def in_two(corpus, root, *overrides):
    """Two processes of one run with DeepSpeed, as torchrun starts them."""
    (root / "ds.json").write_text(json.dumps(DS))
    paths = [f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}"]
    given = [*SMALL, *SHARDS, *paths, f"runs_root={root}", "train.grad_accum=1", "--ds_config", str(root / "ds.json")]
    both = [
        commands.start("traintok", *given, *overrides, cwd=root, **variables) for variables in torchrun_variables(2)
    ]
    return [(*process.communicate(timeout=120), process.returncode) for process in both]


@pytest.fixture(scope="module")
def sharded(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded")
    for _, errors, code in in_two(corpus, root):
        assert code == 0, errors
    return root


def converted(folder, tmp_path, **options):
    given = {"tag": None, "encoder_only": False, "assert_gaatn": False, **options}
    convert(folder, tmp_path / "out.pt", **given)
    return tmp_path / "out.pt"


def last(root):
    return torch.load(root / "t/train/weights/last.pt", weights_only=True)["model"]


def tags(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_plain_run_writes_the_layout(plain, tmp_path):
    folder = plain / "t/jepa_encoder_ds"
    assert (folder / "latest").read_text() == "final"
    assert "final" in tags(folder)
    assert len(tags(folder)) == 3  # two steps and the end
    loaded = load_weights(converted(folder, tmp_path))
    for name, value in last(plain).items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    assert loaded.config["model"]["size"] == "smoke"
    step = min(tags(folder), key=lambda name: int(name.removeprefix("step") or 0) if name != "final" else 10**9)
    other = load_weights(converted(folder, tmp_path, tag=step))
    assert any(not torch.equal(value, last(plain)[name]) for name, value in other.network.state_dict().items())


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_writes_the_same_weights_in_shards(plain, sharded, tmp_path):
    """Two processes of half the batch; rounding apart, the run is the same."""
    folder = sharded / "t/jepa_encoder_ds"
    assert (folder / "latest").read_text() == "final"
    assert sorted(path.name for path in (folder / "final").iterdir()) == [
        "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ]  # fmt: skip
    loaded = load_weights(converted(folder, tmp_path, assert_gaatn=True))
    assert loaded.config["train"]["strategy"] == "deepspeed"
    for name, value in last(sharded).items():
        assert torch.equal(loaded.network.state_dict()[name], value), name
    own, other = (torch.cat([value.flatten() for value in last(root).values()]) for root in (plain, sharded))
    assert (own - other).norm() < 1e-3 * own.norm()


@needs_deepspeed
@pytest.mark.slow
def test_the_shards_alone_give_the_weights(sharded, tmp_path):
    """As where the module is kept in half precision."""
    folder = tmp_path / "ds"
    shutil.copytree(sharded / "t/jepa_encoder_ds/final", folder / "final")
    path = folder / "final/mp_rank_00_model_states.pt"
    states = torch.load(path, weights_only=False)
    states["module"] = {name: torch.zeros_like(value) for name, value in states["module"].items()}
    torch.save(states, path)
    found = torch.load(converted(folder, tmp_path, tag="final"), weights_only=True)["model"]
    for name, value in last(sharded).items():
        assert torch.equal(found[name], value), name


@needs_deepspeed
@pytest.mark.slow
def test_a_run_goes_on_without_deepspeed(corpus, plain, tmp_path):
    """Begun in two processes with it, ended in one without: from the run's checkpoint, and from
    DeepSpeed's folder alone."""
    for _, errors, code in in_two(corpus, tmp_path, "train.epochs=2", "scheduler.kind=constant"):
        assert code == 0, errors
    alone = tmp_path / "shards alone"
    shutil.copytree(tmp_path / "t/jepa_encoder_ds", alone / "t/jepa_encoder_ds")
    more = [
        "train.epochs=3",
        "scheduler.kind=constant",
        "checkpoint.resume=true",
        "train.strategy=auto",
        "train.grad_accum=1",
    ]
    for root in (tmp_path, alone):
        assert run(corpus, root, "checkpoint.shards=true", *more) == 0
    for name, value in last(tmp_path).items():
        assert torch.equal(last(alone)[name], value), name
    whole = tmp_path / "whole"
    assert run(corpus, whole, "train.epochs=2", "scheduler.kind=constant") == 0
    assert run(corpus, whole, "train.epochs=3", "scheduler.kind=constant", "checkpoint.resume=true") == 0
    own, other = (torch.cat([value.flatten() for value in last(root).values()]) for root in (tmp_path, whole))
    assert (own - other).norm() < 1e-3 * own.norm()


def test_a_run_goes_on_from_a_plain_folder_alone(corpus, tmp_path, capsys):
    """In the middle of an epoch; as from the run's own checkpoint."""
    root, alone = tmp_path / "whole", tmp_path / "alone"
    first = ["checkpoint.shards=true", "checkpoint.ckpt_step=1", "train.epochs=2"]
    assert run(corpus, root, *first) == 0
    shutil.copytree(root / "t/jepa_encoder_ds", alone / "t/jepa_encoder_ds")
    steps = sorted(int(tag.removeprefix("step")) for tag in tags(alone / "t/jepa_encoder_ds") if tag != "final")
    (alone / "t/jepa_encoder_ds/latest").write_text(f"step{steps[-2]}")
    assert run(corpus, alone, *first, "checkpoint.resume=true") == 0
    assert f"resumed from step{steps[-2]}" in capsys.readouterr().out
    for name, value in last(root).items():
        assert torch.equal(last(alone)[name], value), name
    shutil.rmtree(alone / "t/train")
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.002 → 0\.1"):
        run(corpus, alone, *first, "checkpoint.resume=true", "optimizer.lr=0.1")


def test_of_a_finished_run_the_folder_alone_gives_the_weights(corpus, plain, tmp_path):
    shutil.copytree(plain / "t/jepa_encoder_ds", tmp_path / "t/jepa_encoder_ds")
    assert run(corpus, tmp_path, *SHARDS, "checkpoint.resume=true") == 0
    for name, value in last(plain).items():
        assert torch.equal(last(tmp_path)[name], value), name


def test_a_second_run_of_the_name_keeps_its_own_steps(corpus, plain, tmp_path):
    """Although those of the first have higher numbers."""
    shutil.copytree(plain / "t", tmp_path / "t")
    folder = tmp_path / "t/jepa_encoder_ds"
    (folder / "final").rename(folder / "step100")
    assert run(corpus, tmp_path, "checkpoint.shards=true", "train.epochs=1", "checkpoint.max_checkpoint=2") == 0
    assert (folder / "latest").read_text() == "final"
    assert len(tags(folder)) == 3
    assert "step3" in tags(folder)


def test_a_folder_without_a_training_state_is_ignored(corpus, plain, tmp_path, capsys):
    folder = tmp_path / "t/jepa_encoder_ds"
    shutil.copytree(plain / "t/jepa_encoder_ds", folder)
    path = folder / "final/mp_rank_00_model_states.pt"
    torch.save({"module": torch.load(path, weights_only=True)["module"]}, path)
    assert run(corpus, tmp_path, "train.epochs=1", "checkpoint.shards=true", "checkpoint.resume=true") == 0
    said = capsys.readouterr().out
    assert "holds weights, but not the state of a training run" in said
    assert "this is a new run" in said


def test_the_encoder_alone(plain, tmp_path):
    path = converted(plain / "t/jepa_encoder_ds", tmp_path, encoder_only=True)
    content = torch.load(path, weights_only=True)
    network = load_weights(plain / "t/train/weights/last.pt").network
    network.encoder.load_state_dict(content["model"])
    assert content["tag"] == "final"


def test_a_wrong_tag_is_told_with_what_is_there(plain, tmp_path):
    with pytest.raises(UserError, match=r"step50000: no such checkpoint .*there are final, step"):
        converted(plain / "t/jepa_encoder_ds", tmp_path, tag="step50000")
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_nothing_are_told(plain, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        converted(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        converted(tmp_path / "empty", tmp_path)
    shutil.copytree(plain / "t/jepa_encoder_ds", tmp_path / "ds")
    (tmp_path / "ds/latest").unlink()
    with pytest.raises(UserError, match="name a checkpoint by --tag"):
        converted(tmp_path / "ds", tmp_path)


@needs_deepspeed
@pytest.mark.slow
def test_deepspeeds_own_launcher(corpus, tmp_path):
    """Two processes on the CPU, with the flags and the configuration file that are shipped."""
    given = ["--num_gpus", "2", "--master_port", str(free_port()), "--module", "sjepa.entrypoints.traintok"]
    flags = [
        "--out_dir",
        str(tmp_path / "out"),
        "--ds_config",
        str(ROOT / "cpu/configs/ds_zero2.json"),
        "--max_steps",
        "2",
    ]
    paths = [f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}"]
    said_there = ("run_name", "train.precision", "train.grad_accum", "train.batch_size", "optimizer", "scheduler")
    small = [item for item in SMALL if not item.startswith(said_there)]
    done = subprocess.run(
        [BIN / "deepspeed", *given, *flags, *small, *paths], env={**os.environ, "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}:{os.environ['PATH']}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert tags(tmp_path / "out/jepa_encoder_ds")[0] == "final"
    assert len(list((tmp_path / "out/jepa_encoder_ds/final").glob("zero_pp_rank_*"))) == 2


@needs_deepspeed
@pytest.mark.slow
def test_missing_shards_are_named(sharded, tmp_path):
    folder = tmp_path / "ds"
    shutil.copytree(sharded / "t/jepa_encoder_ds/final", folder / "final")
    (folder / "final/zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match="without zero_pp_rank_1_mp_rank_00"):
        converted(folder, tmp_path, tag="final")


@pytest.mark.parametrize(
    "states", [{"module": {"a": torch.zeros(2)}, "param_shapes": [{"a": (2,)}]}, {"module": 3}, [3]]
)
def test_damaged_folders_are_told(tmp_path, states):
    """Also with shards that hold something else."""
    (tmp_path / "ds/final").mkdir(parents=True)
    torch.save(states, tmp_path / "ds/final/mp_rank_00_model_states.pt")
    for content in ({}, {"optimizer_state_dict": {"single_partition_of_fp32_groups": []}}):
        torch.save(content, tmp_path / "ds/final/zero_pp_rank_0_mp_rank_00_optim_states.pt")
        with pytest.raises(UserError, match=r"damaged|holds no weights|holds list"):
            converted(tmp_path / "ds", tmp_path, tag="final")


class Attack:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_file_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds/final").mkdir(parents=True)
    path = tmp_path / "ds/final/mp_rank_00_model_states.pt"
    torch.save({"module": Attack()}, path)
    with pytest.raises(UserError, match="refused, it would run"):
        converted(tmp_path / "ds", tmp_path, tag="final")
    path.write_bytes(pickle.dumps({"module": 3})[:7])
    with pytest.raises(UserError, match=r"refused|damaged"):
        converted(tmp_path / "ds", tmp_path, tag="final")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out.pt").exists()


def test_gaussian_attention_can_be_asked_for(corpus, plain, tmp_path):
    converted(plain / "t/jepa_encoder_ds", tmp_path, assert_gaatn=True)
    assert run(corpus, tmp_path / "without", *SHARDS[:1], "train.epochs=1", "model.overrides.gaussians=0") == 0
    with pytest.raises(UserError, match="no weights of Gaussian adaptive attention"):
        converted(tmp_path / "without/t/jepa_encoder_ds", tmp_path, assert_gaatn=True)
