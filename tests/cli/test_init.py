"""trainsjepa --init: what it writes runs as it is, and suits the recordings."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from sjepa.s_jepa.recommend import Corpus, held_out_fraction, nested, recommend
from sjepa.s_jepa.schema import load_config, parse_config
from tests.support.commands import command

ROOT = Path(__file__).parents[2]
RATE = 16000


def corpus_of(hours, **given):
    """A corpus of clips of five seconds."""
    clips = max(2, round(hours * 720))
    return Corpus(**{"hours": hours, "clips": clips, "frames": clips * 249, "cropped": 0.0, "test_hours": 0.1, **given})


def advised(hours, *, allowed=2.0, on_gpu=False, pace=lambda size, frontend: 1e3, **given):
    found = recommend(corpus_of(hours, **given), on_gpu=on_gpu, cores=8, hours=allowed, pace=pace)
    return parse_config(nested(found.settings)), found.seconds


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A manifest of so many hours: segments of one recording of a minute."""
    folder = tmp_path_factory.mktemp("recordings")
    noise = np.random.default_rng(0).standard_normal(60 * RATE) * np.sin(np.arange(60 * RATE) / 3000)
    soundfile.write(folder / "one.wav", 0.1 * noise, RATE)

    def manifest(hours):
        path = folder / f"for_{hours:g}_h.jsonl"
        count = round(hours * 3600 / 10)
        lines = [
            {"path": "one.wav", "offset": number % 50 + number / count, "duration": 10.0} for number in range(count)
        ]
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return path

    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("hours", [0.1, 1, 50])
def test_what_it_writes_runs_as_it_is(recordings, tmp_path, hours):
    """Six minutes, an hour and fifty hours, in four seconds of training; the mixture is fitted on
    fewer frames than there are."""
    audio = recordings(hours)
    told = command("trainsjepa", "--init", audio, "--hours", "0.001", "--out", "own.yaml", "device=cpu", "dataset.validate=header",
                   f"dataset.held_out={0.01 / hours}", "gmm.fit_frames=1000", "gmm.em_iters=3", cwd=tmp_path)  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert f"{hours:.2f} h" in told.stdout
    assert "trainsjepa -c own.yaml" in told.stdout
    config = load_config(tmp_path / "own.yaml")
    assert config.dataset.train_path == str(audio)
    assert config.dataset.scan == "header"
    done = command("trainsjepa", "-c", "own.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / config.run_name / "train/weights/best.pt").exists()


@pytest.mark.slow
def test_it_never_replaces_a_file_and_says_what_is_wrong(recordings, tmp_path):
    (tmp_path / "own.yaml").write_text("mine")
    audio, short = recordings(0.1), tmp_path / "short"
    short.mkdir()
    for name in ("one", "two"):
        soundfile.write(short / f"{name}.wav", np.zeros(round(1.2 * RATE)) + 0.1, RATE)
    for arguments, what in [
        (["--init", audio, "--out", "own.yaml"], "own.yaml exists"),
        (["--init"], "--init: name a folder, archive or manifest"),
        (["--init", "nowhere"], "nowhere: no such file or folder"),
        (["--init", audio, "--hours", "0"], "--hours: 0 is not a number of hours above 0"),
        (["--init", audio.parent / "one.wav"], "one.wav"),
        (["--init", "--template", "trian"], "--template: trian is none of cpu/adapt"),
        (["--hours", "3"], "--template, --hours and --out belong to --init"),
        (["--init", "--template", "train", "train.epochs=7"], "neither --hours nor key=value"),
        (["--init", audio, "dataset={held_out: 0.2}"], "dataset is a whole section"),
        (["--init", audio, "dataset.hf.streaming=true"], "dataset.hf.streaming"),
        (["--init", short], "1.2 s of audio to train on is too little"),
        (["--init", audio, "dataset.train_path=x"], "dataset.train_path does not go with it"),
    ]:
        done = command("trainsjepa", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done
        (line,) = done.stderr.strip().splitlines()
        assert what in line
    assert (tmp_path / "own.yaml").read_text() == "mine"
    assert [path.name for path in tmp_path.glob("*.yaml")] == ["own.yaml"]


@pytest.mark.slow
def test_a_shipped_configuration_is_copied(tmp_path):
    assert command("trainsjepa", "--init", "--template", "gpu/train_twophase", cwd=tmp_path).returncode == 0
    assert load_config(tmp_path / "train_twophase.yaml").device == "cuda"


def test_a_larger_corpus_gets_a_larger_model_and_mixture():
    tiny, hour, tens, thousands = (advised(hours, allowed=1e4)[0] for hours in (0.1, 1, 50, 5000))
    assert [config.model.size for config in (tiny, hour, tens, thousands)] == ["tiny", "mini", "small", "base"]
    assert [config.gmm.num_clusters for config in (tiny, hour, tens, thousands)] == [20, 100, 500, 500]
    assert [config.model.frontend for config in (tens, thousands)] == ["logmel", "waveform"]
    assert [config.train.phase2_start_epoch for config in (tens, thousands)] == [-1, 0.35]


def test_the_hour_is_the_configuration_that_was_measured():
    """cpu/configs/train.yaml, but for the test set that is held out."""
    own, shipped = advised(1.0)[0], load_config(ROOT / "cpu/configs/train.yaml")
    assert own.model == shipped.model
    assert own.masking == shipped.masking
    for key in ("epochs", "max_batch_seconds", "grad_accum", "phase2_start_epoch"):
        assert getattr(own.train, key) == getattr(shipped.train, key), key
    assert own.optimizer.lr == shipped.optimizer.lr
    assert own.gmm.num_clusters == shipped.gmm.num_clusters
    assert (own.gmm.normalise, own.gmm.context, own.gmm.dimensions) == ("clip", 4, 20)


@pytest.mark.parametrize("hours", [0.05, 1, 30, 800])
@pytest.mark.parametrize("allowed", [0.1, 2, 100])
def test_the_time_allowed_is_kept(hours, allowed):
    config, seconds = advised(hours, allowed=allowed, pace=lambda size, frontend: {"tiny": 300.0, "mini": 200.0}.get(size, 40.0))  # fmt: skip
    assert seconds <= allowed * 3600
    assert (config.train.max_steps is not None) == (allowed * 0.9 * 300 < hours)


def test_long_recordings_are_heard_whole():
    """Each second once in an epoch, so that the time foretold is right."""
    windowed = advised(1.0, cropped=0.5)[0].dataset
    assert (windowed.long_clips, windowed.window_overlap) == ("windows", 0.0)
    assert advised(1.0, cropped=0.01)[0].dataset.long_clips == "crop"


def test_a_slow_machine_gets_a_smaller_model():
    slow = advised(50, allowed=2, pace=lambda size, frontend: {"tiny": 500.0, "mini": 150.0}.get(size, 20.0))[0]
    assert slow.model.size == "mini"


def test_phase_2_keeps_its_memory_of_a_hundred_frames_per_component():
    config = advised(1.0)[0]
    frames = config.train.max_batch_seconds * config.train.grad_accum * 49.8 / (1 - config.gmm.param_decay)
    assert frames == pytest.approx(100 * config.gmm.num_clusters, rel=0.1)


@pytest.mark.parametrize(("hours", "clips", "fraction"), [(0.1, 72, 0.2), (1, 720, 0.1), (50, 36_000, 0.02), (50, 50, 0.04),
                                                          (5_000, 3_600_000, 0.001)])  # fmt: skip
def test_so_much_is_held_out(hours, clips, fraction):
    assert held_out_fraction(hours, clips) == pytest.approx(fraction)


def test_a_test_set_of_its_own_is_taken():
    values = nested(
        recommend(corpus_of(1, test_hours=0.5), on_gpu=True, cores=8, hours=1, pace=lambda *_: 1e4).settings
    )
    assert "held_out" not in values["dataset"]
    assert yaml.safe_load(yaml.safe_dump(values)) == values


@pytest.mark.slow
def test_keys_that_are_given_are_taken_over_and_counted(recordings, tmp_path):
    (tmp_path / "2024").mkdir()  # a name that YAML reads as a number
    for name in ("one", "two"):
        (tmp_path / f"2024/{name}.wav").symlink_to(recordings(0.1).parent / "one.wav")
    done = command("trainsjepa", "--init", "2024", "--hours", "0.01", "optimizer.lr=1e-4", "model.size=tiny", "train.epochs=3",
                   "dataset.test_path=null", "device=cpu", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(without train.epochs)" in done.stdout
    config = load_config(tmp_path / "2024.yaml")
    assert (config.optimizer.lr, config.train.epochs, config.train.max_steps) == (1e-4, 3, None)
    assert (config.dataset.train_path, config.dataset.test_path) == ("2024", None)
