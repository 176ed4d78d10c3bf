"""Runs of stage 2: what they write, and that interruptions leave no trace."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sjepa.core.errors import UserError
from sjepa.tokenizer.codec.source import find_encoder, load_encoder
from sjepa.tokenizer.codec.tokens import read_tokens
from sjepa.tokenizer.codec.weights import load_codec
from sjepa.tokenizer.convert import convert
from sjepa.tokenizer.weights import load_weights
from tests.support import commands
from tests.support.commands import command
from tests.support.processes import torchrun_variables
from tests.support.runs import history, stopping_after
from tests.tokenizer import runs
from tests.tokenizer.runs import STAGE_2, decode

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'sjepa[deepspeed]'"
)


@pytest.fixture(scope="module")
def stage_1(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("stage 1")
    assert runs.run(corpus, root, "checkpoint.shards=true", "train.epochs=1") == 0
    return root


@pytest.fixture(scope="module")
def whole(corpus, stage_1, tmp_path_factory):
    root = tmp_path_factory.mktemp("stage 2")
    shutil.copytree(stage_1 / "t", root / "t")
    assert decode(corpus, root, "checkpoint.shards=true") == 0
    return root


def final(root, name):
    weights = torch.load(root / f"t/{name}/weights/last.pt", weights_only=True)["model"]
    timing = ("seconds", "data_waiting")
    return weights, [{k: v for k, v in row.items() if k not in timing} for row in history(root / f"t/{name}")]


def test_it_is_trained_reported_and_kept(whole, stage_1):
    folder = whole / "t/train2"
    rows = history(folder)
    assert float(rows[-1]["val_mel"]) < float(rows[0]["val_mel"])
    assert float(rows[0]["train_judges"]) == 0 or float(rows[-1]["train_judges"]) > 0
    with (folder / "results.csv").open(newline="") as file:
        results = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert results.keys() == {"mel", "spectral", "waveform"}
    codec = load_codec(folder / "weights/best.pt").codec.eval()
    first = load_weights(stage_1 / "t/train/weights/best.pt").network.encoder.state_dict()
    for name, value in codec.encoder.state_dict().items():
        assert torch.equal(value, first[name]), name  # strictly loaded, and not touched
    tokens = codec.encode(torch.randn(1, 16000))
    assert tokens.shape == (1, 50, 4)
    assert codec.decode(tokens).shape == (1, 16000)
    lines = (whole / "t/decoder_logs.txt").read_text().splitlines()
    assert lines[0].split("\t")[:3] == ["step", "epoch", "mel"]


def test_samples_are_written_with_the_token_line(whole):
    audio, rate = soundfile.read(whole / "t/samples/step0000004.wav")
    assert rate == 16000
    assert len(audio) > 8000
    assert (whole / "t/samples/step0000004.jpg").stat().st_size > 10_000
    log = next((whole / "t/train2/logs").iterdir()).read_text()
    assert "[TOK] step=4 G=4 fps=50.0000 dur=" in log
    assert "tps=200.000" in log
    assert (whole / "t/samples/step0000008.wav").exists()  # before the last of nine updates
    assert "GFLOP to encode" in log


@pytest.mark.parametrize("step", [5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(corpus, stage_1, whole, tmp_path, step):
    """Inside an epoch, after the discriminators took part."""
    shutil.copytree(stage_1 / "t", tmp_path / "t")
    with stopping_after(step):
        assert decode(corpus, tmp_path) == 143
    assert decode(corpus, tmp_path, "checkpoint.resume=true") == 0
    (weights, rows), (own, other) = final(whole, "train2"), final(tmp_path, "train2")
    assert rows == other
    for name, value in weights.items():
        assert torch.equal(own[name], value), name


def test_checkpoints_are_also_in_deepspeeds_layout(whole, stage_1, tmp_path):
    """Weights that ckpt2pt makes of them are those of the run; so is the encoder alone."""
    folder, last = whole / "t/decoder_ds", load_codec(whole / "t/train2/weights/last.pt").codec.state_dict()
    assert (folder / "latest").read_text() == "final"
    judges = torch.load(folder / "discriminators.pt", weights_only=True)
    assert judges["tag"] == "final"
    assert judges["discriminators_optimizer"]["state"]
    convert(folder, tmp_path / "a.pt", tag=None, encoder_only=False, assert_gaatn=True)
    found = load_codec(tmp_path / "a.pt").codec.state_dict()
    assert found.keys() == last.keys()
    assert all(torch.equal(found[name], value) for name, value in last.items())
    convert(folder, tmp_path / "b.pt", tag=None, encoder_only=True, assert_gaatn=True)
    first = load_encoder(stage_1 / "t/train/weights/best.pt").state_dict()
    for path in (tmp_path / "a.pt", tmp_path / "b.pt"):
        assert all(torch.equal(value, first[name]) for name, value in load_encoder(path).state_dict().items())


def test_a_run_goes_on_from_that_layout_alone(corpus, stage_1, whole, tmp_path):
    """Of the stopped run everything but decoder_ds (and the encoder) is lost."""
    shutil.copytree(stage_1 / "t", tmp_path / "t")
    given = ["checkpoint.shards=true", f"decoder.encoder={stage_1 / 't'}"]
    with stopping_after(5):
        assert decode(corpus, tmp_path, *given) == 143
    for name in ("train", "train2"):
        shutil.rmtree(tmp_path / "t" / name)
    assert decode(corpus, tmp_path, "checkpoint.resume=true", *given) == 0
    own, weights = final(tmp_path, "train")[0], final(whole, "train2")[0]
    assert all(torch.equal(own[name], value) for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("deepspeed", marks=needs_deepspeed)])
def test_two_processes_are_one(corpus, stage_1, tmp_path, strategy):
    """Each with half of the micro-batches. For two updates: the gradient of a log magnitude near 0
    is as good as random, so that rounding grows from update to update."""
    given = [*STAGE_2, "train.max_steps=2", "decoder.disc_start_step=1"]
    for name in ("one", "two"):
        shutil.copytree(stage_1 / "t", tmp_path / name / "t")
    assert decode(corpus, tmp_path / "one", *given) == 0
    paths = [f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}"]
    given += [*paths, f"runs_root={tmp_path / 'two'}", "train.grad_accum=1", f"train.strategy={strategy}"]
    both = [
        commands.start("traintok", *runs.SMALL, *given, cwd=tmp_path, **variables)
        for variables in torchrun_variables(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    (_, (row,)), (_, (same,)) = final(tmp_path / "one", "train2"), final(tmp_path / "two", "train2")
    for name, value in row.items():
        if name.startswith("train_"):
            assert float(same[name]) == pytest.approx(float(value), rel=1e-4), name
        elif name.startswith("val_"):
            assert float(same[name]) == pytest.approx(float(value), rel=5e-3), name
    assert float(row["train_judges"]) > 0


def test_the_encoder_is_found_in_every_form(stage_1, tmp_path):
    best = load_weights(stage_1 / "t/train/weights/best.pt").network.encoder.state_dict()
    for encoder_only in (False, True):
        convert(
            stage_1 / "t/jepa_encoder_ds", tmp_path / "a.pt", tag=None, encoder_only=encoder_only, assert_gaatn=False
        )
        found = load_encoder(find_encoder(str(tmp_path / "a.pt"), tmp_path)).state_dict()
        assert all(torch.equal(found[name], best[name]) for name in best)  # one epoch: the last is the best
    for given in ("t", "t/train", "t/train/weights/best.pt", "t/jepa_encoder_ds"):
        found = load_encoder(find_encoder(str(stage_1 / given), tmp_path)).state_dict()
        assert all(torch.equal(found[name], best[name]) for name in best)
    assert find_encoder(None, stage_1 / "t") == stage_1 / "t/train/weights/best.pt"


def test_what_is_no_encoder_is_told(corpus, stage_1, tmp_path):
    with pytest.raises(UserError, match=r"decoder.encoder is not set, and .*/t: holds no weights of stage 1"):
        decode(corpus, tmp_path)
    with pytest.raises(UserError, match=r"decoder.encoder: .*nowhere: holds no weights"):
        decode(corpus, tmp_path, f"decoder.encoder={tmp_path / 'nowhere'}")
    content = torch.load(stage_1 / "t/train/weights/best.pt", weights_only=True)
    del content["model"]["encoder.first.weight"]
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(UserError, match=r"encoder\.first\.weight"):
        decode(corpus, tmp_path, f"decoder.encoder={tmp_path / 'damaged.pt'}")
    assert not (tmp_path / "t/train").exists()
    with pytest.raises(UserError, match="makes 640 samples of a frame, the encoder takes 320"):
        decode(corpus, tmp_path, f"decoder.encoder={stage_1 / 't'}", "model.overrides.istft_hop=320")
    with pytest.raises(UserError, match=r"decoder and model: levels: 1 is below 2"):
        decode(corpus, tmp_path, f"decoder.encoder={stage_1 / 't'}", "decoder.levels=[1]")


def test_audio_becomes_tokens_and_tokens_audio(whole, corpus, tmp_path):
    """A folder, a file of another rate, and one that is none."""
    with zipfile.ZipFile(corpus / "test.zip") as archive:
        names = archive.namelist()[:3]
        for name in names:
            archive.extract(name, tmp_path / "clips")
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * 44100)
    soundfile.write(tmp_path / "long.flac", noise, 44100)
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    weights = whole / "t/train2/weights/best.pt"
    given = [
        "clips",
        "long.flac",
        "bad.wav",
        "--weights",
        weights,
        "--out",
        "tokens",
        "window_seconds=1",
        "overlap_seconds=0.2",
    ]
    done = command("runtok", "encode", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert "bad.wav" in done.stdout
    assert "4 tokens a frame, vocabulary 16,384 and 64, 200 tokens/s, 2,400 bit/s" in done.stdout
    tokens = read_tokens(tmp_path / "tokens/long.npz")
    assert tokens.tokens_TG.shape == (150, 4)
    lines = [json.loads(line) for line in (tmp_path / "tokens/tokens.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[-1]["tokens"] == tokens.tokens_TG.tolist()
    done = command("runtok", "decode", "tokens/long.npz", "--weights", weights, "--out", "again.wav", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    audio, rate = soundfile.read(tmp_path / "again.wav")
    assert (len(audio), rate) == (48000, 16000)
    assert "times real time" in done.stdout
    done = command("runtok", "stats", *sorted((tmp_path / "tokens").glob("*.npz")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"4 files, {sum(line['duration'] for line in lines):.1f} s" in done.stdout


def test_recordings_come_from_archives_and_manifests_too(exported, tmp_path):
    """The same tokens wherever a recording lies; a part of it where a manifest says so."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    soundfile.write(tmp_path / "part.wav", noise[8000:24_000], 16000)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "in/a.wav")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.wav", "a.wav")
    line = {"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(line)}\n")
    given = ["a.wav", "part.wav", "b.zip", "c.tar.gz", "d.jsonl"]
    done = command("runtok", "encode", *given, "--weights", exported / "tok_encoder.onnx", "--out", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in (tmp_path / "t/tokens.jsonl").read_text().splitlines():
        entry = json.loads(line)
        name = Path(entry["path"]).relative_to(tmp_path).as_posix()
        found[name, entry.get("start")] = tokens = np.array(entry["tokens"])
        assert np.array_equal(read_tokens(tmp_path / "t" / entry["file"]).tokens_TG, tokens)
    assert len(found) == 5
    for path in ("b.zip/in/a.wav", "c.tar.gz/a.wav"):
        assert np.array_equal(found[path, None], found["a.wav", None])
    assert np.array_equal(found["a.wav", 0.5], found["part.wav", None])


def test_names_and_listing_tell_recordings_apart(exported, tmp_path):
    """Also of segments that begin alike, and of later calls into the same folder."""
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        noise = 0.1 * np.random.default_rng(number).standard_normal(32_000)
        soundfile.write(tmp_path / folder / "x.wav", noise, 16000)
    segments = [{"path": "one/x.wav", "offset": 0.5, "duration": 0.2 + 0.1 * part} for part in range(5)]
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in segments))

    def listed():
        lines = [json.loads(line) for line in (tmp_path / "t/tokens.jsonl").read_text().splitlines()]
        for line in lines:
            assert read_tokens(tmp_path / "t" / line["file"]).tokens_TG.tolist() == line["tokens"]
        return {
            line["file"]: (Path(line["path"]).relative_to(tmp_path).as_posix(), line.get("segment")) for line in lines
        }

    for given, files in ((["one"], 1), (["two"], 2), (["one/x.wav"], 2), (["d.jsonl"], 7), (["d.jsonl", "two"], 7)):
        done = command(
            "runtok", "encode", *given, "--weights", exported / "tok_encoder.onnx", "--out", "t", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert len(set(listed().values())) == len(listed()) == files
    assert listed()["x.npz"] == ("one/x.wav", None)
    assert listed()["two_x.npz"] == ("two/x.wav", None)
    good = (tmp_path / "t/x.npz").read_bytes()
    (tmp_path / "one/x.wav").write_bytes(b"nothing")  # what was made of it before stays, and stays listed
    given = ["one/x.wav", "--weights", exported / "tok_encoder.onnx", "--out", "t"]
    assert command("runtok", "encode", *given, cwd=tmp_path).returncode == 2
    assert (tmp_path / "t/x.npz").read_bytes() == good
    assert "x.npz" in listed()
    with (tmp_path / "t/tokens.jsonl").open("r+") as file:
        file.truncate(200)
    done = command("runtok", "encode", *given, cwd=tmp_path)
    assert "tokens.jsonl: not a listing of tokens, or damaged" in done.stderr
    (tmp_path / "bad.jsonl").write_text('{"path": "two/x.wav"}\n{"pth": "b.wav"}\n')
    done = command("runtok", "encode", "bad.jsonl", *given[1:-1], "u", cwd=tmp_path)
    assert done.returncode == 2  # one of two
    assert "bad.jsonl" in done.stdout
    assert len((tmp_path / "u/tokens.jsonl").read_text().splitlines()) == 1


def test_an_interrupted_encoding_keeps_its_listing(exported, tmp_path):
    """What was encoded before the signal is whole and listed; nothing else is left."""
    (tmp_path / "a").mkdir()
    for number in range(40):
        noise = 0.1 * np.random.default_rng(number).standard_normal(160_000)
        soundfile.write(tmp_path / "a" / f"{number}.wav", noise, 16000)
    given = ["encode", "a", "--weights", exported / "tok_encoder.onnx", "--out", "t"]
    process = commands.start("runtok", *map(str, given), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "t").glob("*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    files = {path.name for path in (tmp_path / "t").iterdir()}
    lines = [json.loads(line)["file"] for line in (tmp_path / "t/tokens.jsonl").read_text().splitlines()]
    assert files == {*lines, "tokens.jsonl"}
    assert 3 <= len(lines) < 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "a.wav"], "--weights"),
        (["decode", "a.npz", "--weights", "w.pt"], "--out"),
        (["stats"], "name token files"),
        (["stats", "a.npz"], "a.npz: no such file"),
        (["encode", "a.wav", "--out", "b", "--weights", "w.pt"], "w.pt: no such file"),
        (["encode", "a.wav", "overlap_seconds=9"], "more than half"),
        (["encode", "a.wav", "windows=9"], "windows"),
    ],
)
def test_bad_arguments_of_runtok_are_one_line(tmp_path, arguments, said):
    done = command("runtok", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    weights = whole / "t/train2/weights/best.pt"
    done = command("exportw", f"init_weights={weights}", "onnx_path=tok.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "runtok takes both" in done.stdout
    return folder


def test_both_halves_run_by_onnxruntime_alone(exported, whole, corpus, tmp_path):
    """In a process that cannot import torch; the same tokens and audio as of the weights."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(40_000), 16000)
    weights = whole / "t/train2/weights/best.pt"
    done = command("runtok", "encode", "a.wav", "--weights", weights, "--out", "own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("runtok", "decode", "own/a.npz", "--weights", weights, "--out", "own.wav", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    program = "import sys; sys.modules['torch'] = None; from sjepa.entrypoints.cli import runtok; sys.exit(runtok())"
    for arguments in (
        ["encode", "a.wav", "--weights", exported / "tok_encoder.onnx", "--out", "onnx"],
        ["decode", "onnx/a.npz", "--weights", exported / "tok_decoder.onnx", "--out", "onnx.wav"],
        ["stats", "onnx/a.npz"],
    ):
        given = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    own, other = (read_tokens(tmp_path / name / "a.npz") for name in ("own", "onnx"))
    assert own.model == other.model
    assert (own.tokens_TG != other.tokens_TG).mean() < 1e-3
    audio, same = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("own", "onnx"))
    assert np.abs(audio - same).max() < 1e-3


def test_a_half_is_told_from_the_other(exported, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    given = ["encode", "a.wav", "--weights", exported / "tok_decoder.onnx", "--out", "b"]
    done = command("runtok", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert "this file decodes; name the one that encodes" in done.stderr
    (tmp_path / "c.onnx").write_bytes(b"nothing")
    done = command("runtok", "encode", "a.wav", "--weights", "c.onnx", "--out", "b", cwd=tmp_path)
    assert "c.onnx: not an ONNX file, or damaged" in done.stderr


def test_it_is_evaluated(whole, corpus, tmp_path):
    weights = whole / "t/train2/weights/best.pt"
    given = [f"weights={weights}", f"dataset.test_path={corpus / 'test.zip'}", "run_name=t", "kept_clips=1"]
    given += ["probe.tasks=[speaker]", f"evaluation.labels={corpus / 'labels.tsv'}", "probe.baselines=[mfcc,untrained]"]
    given += [f"probe.train_path={corpus / 'train.zip'}", "probe.splits=1"]
    done = command("evaltok", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/t/eval"
    with (folder / "results.csv").open(newline="") as file:
        rows = {(row["system"], row["metric"]): row for row in csv.DictReader(file)}
    assert {system for system, _ in rows} == {"this codec", "tokens shuffled in time", "untrained decoder"}
    assert {metric for _, metric in rows} >= {"mel", "spectral", "si_sdr", "stoi"}
    log = (whole / "t/train2/results.csv").read_text()
    own = next(float(line.split(",")[1]) for line in log.splitlines() if line.startswith("mel,"))
    assert float(rows["this codec", "mel"]["mean"]) == pytest.approx(own, rel=0.1)  # by clips, not by seconds
    assert float(rows["this codec", "mel"]["mean"]) < float(rows["untrained decoder", "mel"]["mean"])
    with (folder / "codes.csv").open(newline="") as file:
        assert [row["vocabulary"] for row in csv.DictReader(file)] == ["16384"] * 3 + ["64"]
    with (folder / "clips.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * int(rows["this codec", "mel"]["pieces"])
    with (folder / "probes.csv").open(newline="") as file:
        assert {row["features"] for row in csv.DictReader(file)} >= {"its tokens", "MFCC", "untrained"}
    assert {path.suffix for path in (folder / "samples").iterdir()} == {".wav", ".jpg"}
    for name in ("quality.jpg", "codes.jpg", "probes.jpg"):
        assert (folder / name).stat().st_size > 10_000
    assert "times faster than real time" in done.stdout


def test_evaltok_tells_what_is_missing(whole, corpus, tmp_path):
    done = command("evaltok", cwd=tmp_path)
    assert done.returncode == 2
    assert "weights: name the weights of stage 2" in done.stderr
    first = whole / "t/train/weights/best.pt"
    done = command("evaltok", f"weights={first}", f"dataset.test_path={corpus / 'test.zip'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "weights of stage 1, the encoder; name those of stage 2" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_encoder_that_learns_too(corpus, stage_1, tmp_path):
    """End to end, also from random weights; with it the encoder is no longer that of stage 1."""
    shutil.copytree(stage_1 / "t", tmp_path / "t")
    given = ["train.epochs=1", "decoder.disc_start_step=1", "decoder.train_encoder=true"]
    assert decode(corpus, tmp_path, *given) == 0
    codec = load_codec(tmp_path / "t/train2/weights/last.pt").codec
    first = load_weights(stage_1 / "t/train/weights/best.pt").network.encoder.state_dict()
    changed = [not torch.equal(value, first[name]) for name, value in codec.encoder.state_dict().items()]
    assert sum(changed) > 0.9 * len(changed)
    with stopping_after(3):
        assert decode(corpus, tmp_path / "stopped", "decoder.encoder=untrained", *given) == 143
    assert decode(corpus, tmp_path / "stopped", "checkpoint.resume=true", "decoder.encoder=untrained", *given) == 0
    assert decode(corpus, tmp_path / "whole", "decoder.encoder=untrained", *given) == 0
    (weights, rows), (own, other) = final(tmp_path / "whole", "train"), final(tmp_path / "stopped", "train")
    assert rows == other
    assert all(torch.equal(own[name], value) for name, value in weights.items())


_MEASURED = """
import resource, sys
from sjepa.entrypoints.cli import runtok
code = runtok()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_long_recording_takes_no_more_memory_than_a_short_one(exported, tmp_path):
    """Half an hour against half a minute, there and back, in processes of their own; tokens of an
    hour are a few megabytes."""
    peaks = {"encode": [], "decode": []}
    for name, seconds in (("short", 30), ("long", 1800)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", 16000, 1) as file:
            for part in range(seconds // 30):
                file.write(0.1 * np.random.default_rng(part).standard_normal(30 * 16000))
        for action, arguments in (
            ("encode", [f"{name}.flac", "--weights", exported / "tok_encoder.onnx", "--out", "tokens"]),
            ("decode", [f"tokens/{name}.npz", "--weights", exported / "tok_decoder.onnx", "--out", f"{name}.wav"]),
        ):
            given = [sys.executable, "-c", _MEASURED, action, *map(str, arguments)]
            done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            peaks[action].append(int(done.stdout.split()[-1]) / 1024)  # MiB
    assert soundfile.info(tmp_path / "long.wav").frames == 1800 * 16000
    for action, (short, long) in peaks.items():
        assert long - short < 40, f"{action}: {short:.0f} and {long:.0f} MiB"
