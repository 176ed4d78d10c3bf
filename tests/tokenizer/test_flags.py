"""Flags of traintok are other names of configuration keys."""

import argparse

import pytest

from sjepa.config.load import load_config
from sjepa.core.errors import UserError
from sjepa.entrypoints.flags import add_flags, as_overrides
from sjepa.tokenizer.schema import SCHEMA


def configured(*arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load_config(SCHEMA, None, as_overrides(parser.parse_args(arguments)))


def test_the_documented_command_line_is_understood():
    config = configured(
        "--jsonl", "/data/audio_files.jsonl", "--out_dir", "./jepa_outputs", "--stage", "train_jepa",
        "--sample_rate", "24000", "--batch_size", "32", "--max_steps", "200000", "--save_every_steps", "1000",
        "--lr", "1.5e-4", "--mask_ratio", "0.4", "--max_seconds", "12.5", "--resume",
        "--channels", "64,128,256,384,512,512", "--strides", "8,8,5,5,6", "--n_res_blocks", "4", "--n_conformer", "6",
        "--heads", "8", "--code_dim", "64",
    )  # fmt: skip
    assert config.dataset.train_path == "/data/audio_files.jsonl"
    assert config.dataset.test_path is None
    assert (config.runs_root, config.run_name) == (".", "jepa_outputs")
    assert (config.train.batch_size, config.train.max_steps, config.checkpoint.ckpt_step) == (32, 200_000, 1000)
    assert (config.optimizer.lr, config.mask.ratio, config.dataset.max_seconds) == (1.5e-4, 0.4, 12.5)
    assert config.checkpoint.resume
    assert config.model.overrides == {
        "channels": [64, 128, 256, 384, 512, 512], "strides": [8, 8, 5, 5, 6], "residual_blocks": 4,
        "conformer_layers": 6, "heads": 8, "code_dim": 64,
    }  # fmt: skip


def test_a_data_set_of_the_hub_is_streamed():
    config = configured("--hf_dataset", "someone/podcast", "--hf_audio_field", "flac")
    assert config.dataset.train_path == "hf://someone/podcast"
    hf = config.dataset.hf
    assert hf.streaming
    assert (hf.audio_field, hf.speaker_field, hf.duration_field, hf.split) == ("flac", "json.speaker_id", "json.duration_ms", "train")  # fmt: skip


def test_no_flag_is_no_override():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert as_overrides(parser.parse_args([])) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jsonl", "a.jsonl", "--hf_dataset", "b"], "one of the two"),
        (["--strides", "8,x"], "list of whole numbers"),
        (["--mask_ratio", "2"], "mask.ratio"),
        (["--stage", "both"], "train.stage"),
    ],
)
def test_bad_flags_are_one_line(arguments, said):
    with pytest.raises(UserError, match=said):
        configured(*arguments)


def test_zero_is_a_value():
    assert configured("--n_res_blocks", "0").model.overrides == {"residual_blocks": 0}
    assert configured("--save_every_steps", "0").checkpoint.ckpt_step == 0
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        configured("--lr", "0")


def test_without_a_configuration_a_gpu_is_used_where_there_is_one():
    assert configured("--jsonl", "a.jsonl").device == "auto"
