"""Runs of stage 1: what they write, and that interruptions leave no trace."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
import torch

from sjepa.core.errors import UserError
from sjepa.core.progress import silent
from sjepa.core.random import key
from sjepa.tokenizer.method import network_shape
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.weights import load_weights
from sjepa.training.feeding import load_data
from tests.support.runs import history, stopping_after
from tests.tokenizer.runs import SYSTEM, configured, run


def final(root, name="train"):
    folder = root / "t" / name
    weights = torch.load(folder / "weights/last.pt", weights_only=True)
    timing = ("seconds", "data_waiting")
    rows = [{k: v for k, v in row.items() if k not in timing} for row in history(folder)]
    return {**weights["model"], **{f"target {k}": v for k, v in weights["targets"].items()}}, rows


def assert_same(a, b):
    (weights_a, rows_a), (weights_b, rows_b) = a, b
    assert rows_a == rows_b
    assert weights_a.keys() == weights_b.keys()
    for name, value in weights_a.items():
        assert torch.equal(value, weights_b[name]), name


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("tok")
    assert run(corpus, root, "logging.plots=true") == 0
    return root


def test_it_is_trained_reported_and_kept(whole):
    folder = whole / "t/train"
    rows = history(folder)
    assert float(rows[-1]["val_error"]) < float(rows[0]["val_error"])
    assert 0 < float(rows[-1]["val_mean"]) < 1.5
    assert float(rows[-1]["val_target_rank"]) > 1
    with (folder / "results.csv").open(newline="") as file:
        results = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert results["frames"] > 0
    assert {path.name for path in (folder / "plotes").iterdir()} >= {"history_error.jpg", "history_deviation.jpg"}
    loaded = load_weights(folder / "weights/best.pt")
    waveform = torch.randn(1, 16000)
    features = loaded.network.eval().encoder(waveform).features_BTD
    assert features.shape == (1, 50, 24)
    assert loaded.config["model"]["size"] == "smoke"


def test_the_log_has_a_line_per_report(whole):
    header, *lines = [line.split("\t") for line in (whole / "t/encoder_logs.txt").read_text().splitlines()]
    assert header[:3] == ["step", "epoch", "error"]
    assert [int(line[0]) for line in lines] == [2, 4, 6, 8, 9]
    assert all(0 < float(line[2]) < 3 for line in lines)


def test_the_target_follows_the_encoder(corpus, whole):
    """From where both began."""
    loaded = load_weights(whole / "t/train/weights/last.pt")
    torch.manual_seed(key(0, "model"))
    begun = TokenJEPA(network_shape(configured(corpus, whole))).encoder
    parts = (begun, loaded.targets.encoder.average, loaded.network.encoder)
    first, target, online = (torch.cat([weight.flatten() for weight in part.parameters()]) for part in parts)
    assert 0 < (target - online).norm() < (first - online).norm()


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(corpus, tmp_path, whole, step):
    with stopping_after(step):
        assert run(corpus, tmp_path) == 143
    assert run(corpus, tmp_path, "checkpoint.resume=true") == 0
    assert_same(final(tmp_path), final(whole))
    logs = [(root / "t/encoder_logs.txt").read_text().splitlines() for root in (tmp_path, whole)]
    steps, expected = ([line.split("\t")[:4] for line in log] for log in logs)
    assert steps == expected


@pytest.mark.slow
def test_stopped_at_the_end_of_the_spectral_loss_it_goes_on_the_same(corpus, tmp_path):
    """9 updates, 4 of them with it."""
    own, whole = ("train.spectral_warmup=0.4",), tmp_path / "whole"
    assert run(corpus, whole, *own) == 0
    with stopping_after(4):
        assert run(corpus, tmp_path, *own) == 143
    assert run(corpus, tmp_path, *own, "checkpoint.resume=true") == 0
    assert_same(final(tmp_path), final(whole))


def test_memory_is_probed_without_a_trace(corpus, tmp_path, whole):
    assert run(corpus, tmp_path, "train.probe_memory=true") == 0
    assert_same(final(tmp_path), final(whole))


def test_without_a_test_set_part_of_the_training_set_is_held_out(corpus, tmp_path):
    assert run(corpus, tmp_path, "dataset.test_path=null", "dataset.held_out=0.25", "train.epochs=1") == 0
    (log,) = (tmp_path / "t/train/logs").iterdir()
    text = log.read_text()
    counts = [int(line.split()[1]) for line in text.splitlines() if line.startswith(("train  ", "test  "))]
    assert len(counts) == 2
    assert counts[1] == pytest.approx(0.25 * sum(counts), abs=1)


def test_other_weights_are_refused(corpus, whole, tmp_path):
    from sjepa.s_jepa.weights import load_weights as load_other

    with pytest.raises(UserError, match="not a file of sjepa weights"):
        load_other(whole / "t/train/weights/best.pt")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.overrides={heads: 5}", "not a multiple of heads"),
        ("model.overrides={strides: [4, 4]}", "2 strides need 3"),
        ("model.overrides={width: 3}", "width"),
        ("dataset.max_seconds=0.02", "two frames"),
        ("target.ema_start=0.99999", "target.ema_end"),
        ("train.stage=train_both", "train.stage"),
        ("mask.ratio=1.0", "mask.ratio"),
        ("train.compile=true", "train.compile"),
    ],
)
def test_what_does_not_fit_is_one_line(corpus, tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        configured(corpus, tmp_path, "dataset.min_seconds=0.01", override)


def test_the_rate_is_that_of_the_size(corpus, tmp_path):
    assert configured(corpus, tmp_path).dataset.sample_rate == 16000
    assert configured(corpus, tmp_path, "model.size=speech").dataset.sample_rate == 24000
    assert configured(corpus, tmp_path, "dataset.sample_rate=8000").dataset.sample_rate == 8000


def test_the_system_describes_its_network(corpus, tmp_path):
    with torch.device("meta"):
        network = TokenJEPA(network_shape(configured(corpus, tmp_path, "model.size=seed")))
    text = SYSTEM.describe(network)
    assert "encoder 118,511,794 parameters, predictor 3,177,216; 2.5 frames per second" in text


def test_whole_speakers_are_held_out_where_all_are_known(corpus, tmp_path):
    """4 speakers, 6 clips each, over both archives."""
    names = []
    for archive in ("train.zip", "test.zip"):
        with zipfile.ZipFile(corpus / archive) as file:
            file.extractall(tmp_path)
            names += [name for name in file.namelist() if not name.endswith("/")]
    speaker_of = {str(tmp_path / name): Path(name).parts[0] for name in names}
    lines = [json.dumps({"wav_path": path, "speaker": speaker}) for path, speaker in speaker_of.items()]
    (tmp_path / "all.jsonl").write_text("\n".join([*lines, "{broken"]))
    config = configured(corpus, tmp_path, f"dataset.train_path={tmp_path / 'all.jsonl'}", "dataset.test_path=null")
    data = load_data(config, progress=silent)
    sides = [
        {clips.speaker(position) for position in range(len(clips))} for clips in (data.train.clips, data.test.clips)
    ]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len(data.train.clips) + len(data.test.clips) == len(names)
    assert [name for name, _ in data.train.dropped] == [f"all.jsonl/line {len(names) + 1}"]
