import shlex
from functools import reduce
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from sjepa.config.load import ConfigError, dump_config, keys
from sjepa.config.reference import reference
from sjepa.core.errors import UserError
from sjepa.s_jepa.metrics import FIGURES
from sjepa.s_jepa.schema import SCHEMA, load_config, parse_config
from sjepa.s_jepa.settings import Best, Config


def problems(*overrides, path=None):
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value).splitlines()


def test_defaults_are_the_contracts():
    config = load_config(None)
    assert (config.train.epochs, config.train.batch_size, config.train.grad_accum) == (10, 8, 4)
    assert (config.gmm.num_clusters, config.gmm.num_clusters_phase2) == (100, 500)
    assert config.optimizer.betas == (0.9, 0.99)
    assert config.dataset.scan is True


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optimizer: {lr: 1e-4, weight_decay: 2.E-3}\n")
    config = load_config(path, ["scheduler.min_ratio=5e-2"])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.scheduler.min_ratio) == (1e-4, 2e-3, 0.05)


def test_the_resolved_configuration_can_be_run_again_as_it_is(tmp_path):
    config = load_config(None, ["train.epochs=3", "dataset.validate=full", "optimizer.betas=[0.8, 0.9]"])
    path = tmp_path / "config_used.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_misspelt_keys_come_with_a_suggestion():
    assert problems("train.epoch=3") == ["configuration: train.epoch: unknown key, did you mean train.epochs?"]
    assert problems("lr=3") == ["configuration: lr: unknown key, did you mean optimizer.lr?"]


def test_all_problems_are_reported_at_once():
    found = problems(
        "train.epochs=0", "masking.mask_ratio=1.3", "device=gpu", "gmm.foo=1", "model.overrides.num_heads=5"
    )
    assert len(found) == 5
    assert "configuration: masking.mask_ratio: 1.3 is not between 0 and 1 (bounds excluded)" in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=true", "train.epochs: true is not a whole number"),
        ("train.epochs=2.5", "train.epochs: 2.5 is not a whole number"),
        ("optimizer.lr=.nan", "optimizer.lr: nan is not a finite number"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number"),
        ("dataset.validate=maybe", "dataset.validate: 'maybe' is not true or false or one of full or header"),
        ("dataset.train_path=[]", "dataset.train_path: [] is not a path or a list of paths"),
        (
            "dataset.augment.reverb_seconds=[0, 1]",
            "dataset.augment: reverb_seconds: [0.0, 1.0] is not between 0.01 and 10",
        ),
        (
            "dataset.augment.pitch_semitones=[0, 30]",
            "dataset.augment: pitch_semitones: [0.0, 30.0] is not between -24 and 24",
        ),
        ("gmm.hold_steps=1.5", "gmm: hold_steps: 1.5 is neither whole nor a fraction up to 1"),
        ("dataset.augment.snr_noise=[9, 1]", "dataset.augment.snr_noise: [9.0, 1.0] is not [low, high]"),
        ("dataset.min_seconds=20", "dataset: min_seconds 20 is more than max_seconds 15"),
        ("run_name=a/b", "run_name: 'a/b' is not a plain folder name"),
        ("run_name=..", "run_name: '..' is not a plain folder name"),
        ("model.overrides.dropout=1.0", "model.overrides.dropout: 1.0 is not between 0 and 1 (bounds excluded)"),
        ("train={compile: true, strategy: fsdp}", "train: compile: true goes with strategy ddp, not with fsdp"),
        ("masking=3", "masking: 3 is not a section with keys of its own"),
    ],
)
def test_messages_name_key_value_and_what_would_be_right(override, message):
    assert problems(override) == [f"configuration: {message}"]


def test_files_that_are_no_configuration_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    assert problems(path=path) == [f"{path}: no such configuration file"]
    path.write_text("train: {epochs: 1}\ntrain: {epochs: 2}\n")
    assert "appears twice" in problems(path=path)[0]
    path.write_text("- a\n")
    assert "not a mapping" in problems(path=path)[0]
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    assert "not valid YAML" in problems(path=path)[0]


def test_an_override_needs_a_key_and_a_value():
    assert "is not an override" in problems("train.epochs")[0]
    assert "is not a section" in problems("seed=1", "seed.x=1")[0]


def test_every_key_is_documented():
    text = reference(SCHEMA)
    for path, field in keys(Config):
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):  # a section
            continue
        assert field.description, f"{path} has no description"
        assert f"{path} = " in text
        assert field.description in text
    assert "model.overrides.layer_drop = 0.05" in text


def test_plain_values_round_trip_through_weights():
    config = load_config(None, ["model.size=tiny"])
    plain = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    assert parse_config(plain) == config


def test_config_error_is_the_users_to_mend():
    assert issubclass(ConfigError, UserError)


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("dataset.train_path=../sp ace #1", "'dataset.train_path=\"../sp ace #1\"'"),
        ("run_name=#1", "'run_name=\"#1\"'"),
        ("init_weights=take#1/x.pt #2", "'init_weights=\"take#1/x.pt #2\"'"),
    ],
)
def test_a_comment_on_the_command_line_is_told_and_how_to_quote_it(override, quoted):
    (problem,) = problems(override)
    assert "comment" in problem
    assert problem.endswith(quoted)
    name, text = override.split("=", 1)
    assert reduce(getattr, name.split("."), load_config(None, shlex.split(quoted))) == text


@pytest.mark.parametrize(
    ("override", "read"), [("run_name=007", "a number"), ("run_name=yes", "true or false"), ("init_weights=1e3", "a number"),
                           ("run_name=2024-01-02", "a date"), ("dataset.train_path=7", "a number")]
)  # fmt: skip
def test_a_number_where_a_text_is_wanted_is_told_and_how_to_quote_it(override, read):
    (problem,) = problems(override)
    name = override.split("=")[0]
    assert f"YAML reads {read}" in problem
    assert f"'{name}=\"…\"'" in problem


def test_a_hash_inside_a_name_is_no_comment():
    assert load_config(None, ["run_name=a#b", "init_weights='a #b'"]).run_name == "a#b"


def test_the_best_weights_are_chosen_by_any_metric_that_is_better_one_way():
    assert set(get_args(Best.model_fields["metric"].annotation)) == {figure.name for figure in FIGURES if figure.better}
