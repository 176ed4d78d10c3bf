"""The examples and the notebook run, on a little generated speech, and learn from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch

from sjepa import load_encoder
from sjepa.dataset.demo import write_corpus
from tests.support.commands import command
from tests.support.runs import run

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder of recordings with labels.tsv, weights, and their exported folder."""
    folder = tmp_path_factory.mktemp("examples")
    write_corpus(folder, speakers=8, clips=8, seed=3)
    for name in ("train", "test"):
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            archive.extractall(folder / "audio")
    assert run(folder, folder, "train.epochs=6", "model.frontend=logmel", "model.overrides={width: 64, num_heads: 4, predictor_heads: 4}",
               "gmm.normalise=clip", "optimizer.lr=3e-3") == 0  # fmt: skip
    assert (
        command("exportw", "init_weights=r/train/weights/best.pt", "onnx_path=out/encoder.onnx", cwd=folder).returncode
        == 0
    )
    return folder


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_recognition_learns_characters(material, examples, tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    from recognition import main
    from transformers import pipeline

    found = main(["--encoder", str(material / "out/hf"), "--audio", str(material / "audio"), "--table", str(material / "labels.tsv"),
                  "--out", str(tmp_path / "asr"), "--epochs", "8"])  # fmt: skip
    # minutes of speech are too few to recognise new words; the loss tells that it learns
    assert found["loss_after"] < 0.7 * found["loss_before"]
    assert found["cer_after"] <= 1.0 < found["cer_before"]  # from noise to blanks and first letters
    recogniser = pipeline("automatic-speech-recognition", model=str(tmp_path / "asr"), trust_remote_code=True)
    waveform, rate = soundfile.read(next((material / "audio").rglob("*.flac")), dtype="float32")
    assert isinstance(recogniser({"raw": waveform, "sampling_rate": rate})["text"], str)


def test_classification_of_utterances(material, examples):
    from classification import main, mean_features

    encoder = load_encoder(material / "r/train/weights/best.pt")
    short, long = torch.randn(8000) * 0.1, torch.randn(24000) * 0.1
    with torch.no_grad():  # the mean is over a clip's own frames, whatever it is padded to
        beside, alone = mean_features(encoder, [short, long])[0], mean_features(encoder, [short])[0]
        assert torch.allclose(beside, alone, atol=1e-4)
        assert torch.allclose(alone, encoder(short[None])[0].mean(0), atol=1e-4)
    found = main(["--encoder", str(material / "r/train/weights/best.pt"), "--audio", str(material / "audio"),
                  "--table", str(material / "labels.tsv"), "--column", "gender", "--epochs", "2"])  # fmt: skip
    assert set(found) == {"most frequent class", "MFCC", "encoder, frozen", "encoder, fine-tuned"}
    assert found["encoder, frozen"] > 0.4
    assert found["encoder, fine-tuned"] > 0.4


def test_the_notebook_runs_from_a_folder_to_the_report(tmp_path):
    pytest.importorskip("nbmake", reason="nbmake is not installed")
    notebook = EXAMPLES / "from_folder_to_report.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--nbmake-timeout=600", f"--rootdir={tmp_path}",
         "-c", "/dev/null", str(notebook)],
        env={**os.environ, "HOURS": "0.003"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
