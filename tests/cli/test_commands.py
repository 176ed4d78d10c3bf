"""The commands as a user runs them: separate processes, exit codes, one clear line per mistake."""

import json
import re
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from sjepa import load_encoder
from tests.support.audio import encode, tone
from tests.support.commands import BIN, command, start

COMMANDS = ["trainsjepa", "buildh5ds", "evalsjepa", "exportw", "runinfer"]
QUICK = [
    "model.size=tiny", "model.overrides={conv_channels: 16, width: 32, num_layers: 1, num_heads: 2, ffn_width: 32, predictor_heads: 2}",
    "dataset.num_workers=0", "gmm.num_clusters=8", "gmm.fit_frames=500", "gmm.em_iters=2", "train.epochs=1", "train.batch_size=4",
    "train.grad_accum=1", "scheduler.warmup_steps=0.1", "dataset.max_seconds=3",
]  # fmt: skip


def fails(cwd, *arguments):
    """The one line on standard error of a command that must exit with 2 and without a traceback."""
    done = command("trainsjepa", *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("trainsjepa: ")
    return line


def data(corpus):
    return [f"dataset.train_path={corpus / 'train.zip'}", f"dataset.test_path={corpus / 'test.zip'}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_installed_scripts_tell_help_and_version(name, tmp_path):
    shown = command(name, "--help", cwd=tmp_path, installed=True)
    assert shown.returncode == 0
    assert "--config" in shown.stdout
    assert command(name, "--version", cwd=tmp_path, installed=True).stdout.startswith(name)


@pytest.mark.parametrize("arguments", [["--help"], ["--help-config"], ["train.epoch=1"]])
def test_answers_about_arguments_do_not_load_torch(arguments):
    code = f"""
import sys
sys.argv = ["trainsjepa", *{arguments}]
from sjepa.entrypoints import cli
try:
    cli.trainsjepa()
except SystemExit:
    pass
print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # a wrong key is found before torch is needed
    assert done.stderr.strip().splitlines()[-1] == "False"


def test_importing_the_package_is_instant():
    code = "import sys, sjepa; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'loguru', 'pydantic'}))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_the_keys(name, tmp_path):
    shown = command(name, "--help-config", cwd=tmp_path)
    assert shown.returncode == 0
    assert "onnx_path" in shown.stdout


def test_keys_of_a_section_a_schema_for_editors_and_completion(tmp_path):
    own = command("runinfer", "--help-config", "export", cwd=tmp_path).stdout
    assert "export.quantize" in own
    assert "gmm." not in own
    shown = command("trainsjepa", "--help-config", "gmm", cwd=tmp_path).stdout
    assert shown.startswith("gmm.num_clusters = 100")
    assert "dataset." not in shown
    done = command("trainsjepa", "--help-config", "gm", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    schema = json.loads(command("traintok", "--config-schema", cwd=tmp_path).stdout)
    assert schema["additionalProperties"] is False
    assert {"dataset", "train", "decoder"} <= set(schema["properties"])
    assert any("validate" in own.get("properties", {}) for own in schema["$defs"].values())  # as it is written in YAML
    script = command("trainsjepa", "--print-completion", "bash", cwd=tmp_path).stdout
    words = f"{script}\nCOMP_WORDS=(trainsjepa gmm.num); COMP_CWORD=1; _shtab_trainsjepa; echo ${{COMPREPLY[@]}}"
    completed = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert completed.stdout.split() == ["gmm.num_clusters=", "gmm.num_clusters_phase2="]
    for name in ("runtok", "ckpt2pt"):  # whatever else they require
        assert "_shtab" in command(name, "--print-completion", "zsh", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", ["trainsjepa", "buildh5ds", "evalsjepa", "exportw", "evaltok"])
def test_help_fits_on_a_screen(name, tmp_path):
    assert command(name, "--help", cwd=tmp_path).stdout.count("\n") <= 40


def test_training_export_and_inference_give_the_encoders_features(corpus, tmp_path):
    """trainsjepa, exportw, runinfer, as the README has them."""
    assert command("trainsjepa", *QUICK, *data(corpus), "run_name=r", cwd=tmp_path).returncode == 0
    options = ["init_weights=runs/r/train/weights/best.pt", "onnx_path=out/encoder.onnx"]
    done = command("exportw", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "a.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    done = command("runinfer", "onnx_path=out/encoder.onnx", "--audio", "a.wav", "--out", "a.npy", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    encoder = load_encoder(tmp_path / "runs/r/train/weights/best.pt")
    with torch.no_grad():
        expected = encoder(torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="float32")[0])[None])
    assert np.abs(np.load(tmp_path / "a.npy") - expected[0].numpy()).max() < 1e-4


@pytest.mark.slow
def test_a_run_on_a_pipe_prints_plain_lines(corpus, tmp_path):
    done = command("trainsjepa", *QUICK, *data(corpus), "train.log_every=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("18 clips", "Total params", "batch ", "phase 1", "log-likelihood", "of training", "epoch 0 step 2/", "val kl",
                 "full test set, best.pt", "done: runs/sjepa_base/train/weights (best.pt is epoch 0"):  # fmt: skip
        assert text in done.stdout, text
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout
    log = next((tmp_path / "runs/sjepa_base/train/logs").glob("*.log")).read_text()
    assert "epoch 0 step 2/" in log
    assert "GMM: EM" in log


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind(corpus, tmp_path):
    done = command("trainsjepa", "--dry-run", *QUICK, *data(corpus), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("18 clips", "Total params", "GiB", "phase 1", "updates"):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_mistakes_in_the_data_are_one_clear_line(corpus, tmp_path):
    paths = data(corpus)
    assert "nowhere.zip: no such file or folder" in fails(tmp_path, "dataset.train_path=nowhere.zip", paths[1])
    (tmp_path / "empty").mkdir()
    assert "dataset.train_path: empty holds no audio file" in fails(tmp_path, "dataset.train_path=empty", paths[1])
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    assert "empty.zip holds no audio file" in fails(tmp_path, "dataset.train_path=empty.zip", paths[1])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_text("no audio")
    line = fails(tmp_path, "dataset.train_path=bad", paths[1])
    assert "none of the 1 audio files in bad can be used (bad/a.wav: " in line
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.wav").write_bytes(encode(tone(0.02), 16000, "wav"))
    assert "shorter than 0.1 s" in fails(tmp_path, "dataset.train_path=short", paths[1])
    (tmp_path / "some.zip").write_bytes(b"PK nonsense")
    assert "cannot be read as zip" in fails(tmp_path, "dataset.train_path=some.zip", paths[1])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_mistakes_in_the_configuration_are_one_clear_line(corpus, tmp_path):
    assert fails(tmp_path, "train.epoch=1").endswith("train.epoch: unknown key, did you mean train.epochs?")
    assert "c.yaml: no such configuration file" in fails(tmp_path, "-c", "c.yaml")
    assert "the run already starts in phase 2" in fails(tmp_path, "train.phase2_start_epoch=1", "train.phase=2")
    assert "fp16 needs a GPU" in fails(tmp_path, "train.precision=fp16", *data(corpus))
    assert "init_weights: name the weights" in command("evalsjepa", cwd=tmp_path).stderr
    assert "x.pt: no such file" in fails(tmp_path, "init_weights=x.pt", *QUICK, *data(corpus))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be absent")
def test_an_absent_device_is_an_error_and_no_fallback(corpus, tmp_path):
    for device in ("cuda", "rocm"):
        assert f"device: {device} is not available on this machine" in fails(
            tmp_path, f"device={device}", *data(corpus)
        )


def test_more_components_than_frames_are_refused(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.wav").write_bytes(encode(tone(0.5), 16000, "wav"))
    line = fails(tmp_path, *QUICK, "dataset.train_path=one", "dataset.test_path=one", "gmm.num_clusters=100")
    assert "gmm.num_clusters: 100 components cannot be fitted on 24 frames" in line


@pytest.mark.slow
def test_one_clip_is_enough(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.wav").write_bytes(
        encode(tone(2.0) + 0.01 * np.random.randn(32000, 1).astype(np.float32), 16000, "wav")
    )
    done = command("trainsjepa", *QUICK, "dataset.train_path=one", "dataset.test_path=one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(corpus, tmp_path):
    arguments = [*QUICK, *data(corpus), "train.epochs=400", "train.log_every=1"]
    process = start("trainsjepa", *arguments, cwd=tmp_path)
    for line in process.stdout:
        if "epoch 1 step" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 143
    assert "checkpoint.resume=true resumes it" in rest
    history = tmp_path / "runs/sjepa_base/train/history.csv"
    epochs = len(history.read_text().splitlines()) + 1  # of those that are done, one begun, one more
    done = command("trainsjepa", *arguments[:-2], f"train.epochs={epochs}", "checkpoint.resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed from epoch_\d+_step_", done.stdout)
    assert len(history.read_text().splitlines()) == 1 + epochs


@pytest.mark.parametrize(
    "written", ["trainsjepa --help-config", "runinfer --help-config", "trainsjepa --print-completion bash"]
)
def test_output_to_a_closed_pipe_is_no_fault(tmp_path, written):
    process = subprocess.Popen(
        f"{BIN / written} | head -1",
        shell=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    shown, errors = process.communicate(timeout=60)
    assert shown.count(b"\n") == 1
    assert errors == b""
