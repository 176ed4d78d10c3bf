"""The user's DeepSpeed configuration, as keys of our own."""

import json
from pathlib import Path

import pytest
import torch

from sjepa.config.load import dump_config, load_config
from sjepa.core.errors import UserError
from sjepa.tokenizer.ds_config import DeepSpeedCurve, check_batch
from sjepa.tokenizer.method import TOKENIZER_ENCODER
from sjepa.tokenizer.schema import SCHEMA
from tests.tokenizer.runs import run

ROOT = Path(__file__).parents[2]
# of the specification, without the offload that its own optimiser refuses
DOCUMENTED = {
    "train_batch_size": 64,
    "gradient_accumulation_steps": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 1.5e-4, "betas": [0.8, 0.99], "eps": 1e-8, "weight_decay": 0.01},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 1.5e-4, "warmup_num_steps": 1000, "total_num_steps": 200000},
    },
}


def configured(tmp_path, values, *overrides):
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return load_config(SCHEMA, None, [f"train.ds_config={path}", *overrides])


def test_its_values_are_those_of_the_run(tmp_path):
    config = configured(tmp_path, {**DOCUMENTED, "gradient_clipping": 0.5}, "train.batch_size=32")
    assert (config.train.batch_size, config.train.grad_accum, config.train.grad_clip_norm) == (32, 2, 0.5)
    assert (config.train.strategy, config.train.zero_stage, config.train.precision) == ("deepspeed", 2, "bf16")
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.weight_decay) == (1.5e-4, (0.8, 0.99), 0.01)
    (stage,) = TOKENIZER_ENCODER.plan(config, 100).stages
    assert isinstance(stage.rate, DeepSpeedCurve)
    assert stage.rate.at(1001) == pytest.approx(1.5e-4)


def test_the_saved_configuration_needs_no_file(tmp_path):
    config = configured(tmp_path, DOCUMENTED, "train.batch_size=32")
    (tmp_path / "ds.json").unlink()
    (tmp_path / "used.yaml").write_text(dump_config(config))
    assert load_config(SCHEMA, tmp_path / "used.yaml") == config


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_shipped_ones_are_valid(kind):
    path = ROOT / kind / "configs/ds_zero2.json"
    config = load_config(SCHEMA, None, [f"train.ds_config={path}"])
    assert config.train.zero_stage == 2


@pytest.mark.parametrize(
    ("changed", "overrides", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 16}, ["train.batch_size=32"], "train_micro_batch_size_per_gpu is 16"),
        ({"gradient_accumulation_steps": 2}, ["train.grad_accum=4"], "train.grad_accum is set to 4"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, ["optimizer.lr=1e-4"], "optimizer.lr is set to"),
        ({"optimizer": {"type": "Lamb"}}, [], "'Lamb' is not AdamW"),
        ({"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}}, [], "amsgrad"),
        ({"scheduler": {"type": "OneCycle"}}, [], "'OneCycle' is not one of"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, [], "total_num_steps"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup": 3}}}, [], "no such parameter"),
        ({"zero_optimization": {"stage": 3}}, [], "3 is not 0, 1 or 2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, [], "offload_optimizer"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, [], "one of the two"),
        ({"fp16": True}, [], "not an object"),
        ({"amp": {"enabled": True}}, [], "amp: not available"),
        ({"bf16": {"enabled": True}}, ["train.precision=fp32"], "train.precision is set to"),
        ({"gradient_clipping": -1.0}, [], "grad_clip_norm"),
        ({"gradient_clipping": 0}, [], "grad_clip_norm"),
        ({"fp16": {"enabled": True, "loss_scale": 128}}, [], "fp16.loss_scale: 128: a constant scale"),
        ({"fp16": {"enabled": True, "los_scale": 0.5}}, [], "fp16.los_scale: not available"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, [], "bf16_optimizer_states: not available"),
        ({"optimizer": {"type": "AdamW", "params": [1]}}, [], r"optimizer.params: \[1\] is not an object"),
        ({"scheduler": {"type": "WarmupLR", "params": [1]}}, [], r"scheduler.params: \[1\] is not an object"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "x"}}}, [], "'x' is not a number"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": [1]}}}, [], r"\[1\] is not a number"),
        ({"scheduler": {"type": "WarmupLR"}}, ["optimizer.lr=1e-4"], r"\(its default\) is 0.001, but optimizer.lr"),
    ],
)
def test_contradictions_and_what_is_not_there_are_named(tmp_path, changed, overrides, said):
    with pytest.raises(UserError, match=said):
        configured(tmp_path, changed, *overrides)


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[1]", "not an object")])
def test_a_file_that_is_none_is_named(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        configured(tmp_path, text)
    with pytest.raises(UserError, match="no such file"):
        load_config(SCHEMA, None, ["train.ds_config=nowhere.json"])


def test_auto_is_what_the_run_says(tmp_path):
    params = {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": 30}
    config = configured(tmp_path, {"scheduler": {"type": "WarmupDecayLR", "params": params}}, "optimizer.lr=3e-4")
    assert config.optimizer.lr == 3e-4
    assert config.scheduler.deepspeed["params"] == {"total_num_steps": 30}


def test_the_documented_half_precision_is_accepted(tmp_path):
    half = {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}
    values = {name: value for name, value in DOCUMENTED.items() if name != "bf16"}
    assert configured(tmp_path, {**values, "fp16": half}).train.precision == "fp16"


def test_the_batch_counts_all_processes():
    check_batch(DOCUMENTED, clips=16, accumulated=2, processes=2)
    check_batch({"train_batch_size": "auto"}, clips=1, accumulated=1, processes=1)
    with pytest.raises(UserError, match=r"train_batch_size is 64, but train\.batch_size: 32 .* × 2 processes are 128"):
        check_batch(DOCUMENTED, clips=32, accumulated=2, processes=2)


def test_a_batch_that_contradicts_is_told_before_anything_is_written(corpus, tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 65}))
    with pytest.raises(UserError, match="train_batch_size is 65"):
        run(corpus, tmp_path, f"train.ds_config={tmp_path / 'ds.json'}")
    assert not (tmp_path / "t/train").exists()


@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("WarmupLR", {"warmup_min_lr": 1e-5, "warmup_num_steps": 7}),
        ("WarmupDecayLR", {"warmup_min_lr": 0.0, "warmup_num_steps": 7, "total_num_steps": 30}),
        ("WarmupDecayLR", {"warmup_num_steps": 1, "total_num_steps": 30}),
        (
            "WarmupCosineLR",
            {"warmup_min_ratio": 0.1, "warmup_num_steps": 7, "total_num_steps": 30, "cos_min_ratio": 0.05},
        ),
    ],
)
def test_rates_are_those_of_deepspeed(name, params, kind):
    schedulers = pytest.importorskip("deepspeed.runtime.lr_schedules")
    params = {**params, "warmup_type": kind}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    more = {} if name == "WarmupCosineLR" else {"warmup_max_lr": 1e-3}
    theirs = getattr(schedulers, name)(optimizer, **params, **more)
    curve = DeepSpeedCurve(
        start_step=0, end_step=40, peak=1e-3, warmup_steps=0, name=name, params=tuple(params.items())
    )
    for step in range(40):
        assert curve.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()
