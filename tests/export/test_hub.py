"""Weights from and to the Hugging Face Hub, against a stand-in server; and the model card."""

import subprocess
import sys

import pytest
import torch
import yaml

from tests.support.commands import command
from tests.support.hub_server import hub_server
from tests.support.runs import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    assert run(corpus, root, "train.epochs=1", "model.frontend=logmel", "logging.report=true") == 0
    return root / "r/train/weights/best.pt"


def environment(address, folder):
    return {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}


def test_an_exported_folder_goes_to_the_hub_and_comes_back(weights, tmp_path):
    with hub_server() as (address, models, _):
        given = environment(address, tmp_path)
        up = command("exportw", f"init_weights={weights}", "onnx_path=up/encoder.onnx", "hub=ann/voices", "export.licence=cc0-1.0", cwd=tmp_path, **given)  # fmt: skip
        assert up.returncode == 0, up.stderr
        assert {"config.json", "model.safetensors", "README.md", "modeling_sjepa.py"} <= set(models["ann/voices"])
        models["ann/voices"]["pytorch_model.bin"] = b"the same in another format"
        down = command(
            "exportw", "init_weights=hf://ann/voices@main", "onnx_path=down/encoder.onnx", cwd=tmp_path, **given
        )
        assert down.returncode == 0, down.stderr
        assert not list((tmp_path / "home").rglob("pytorch_model.bin"))
        card = (tmp_path / "down/hf/README.md").read_text()
        assert "converted from a Hugging Face folder" in card
        assert "S-JEPA](" not in card
        code = (
            "import sys, torch; from sjepa import load_encoder; wave = torch.linspace(-0.1, 0.1, 8000)[None] ** 3;"
            "a, b = load_encoder('hf://ann/voices'), load_encoder(sys.argv[1]);"
            "assert torch.equal(a(wave), b(wave))"
        )
        subprocess.run([sys.executable, "-c", code, str(weights)], check=True, env={**given, "PATH": ""}, cwd=tmp_path)
    first, second = ((tmp_path / name / "encoder.onnx").stat().st_size for name in ("up", "down"))
    assert abs(first - second) < 500  # metadata differ


def test_what_is_not_there_is_told_in_a_line(tmp_path):
    with hub_server() as (address, _, posts):
        done = command("exportw", "init_weights=hf://ann/none", cwd=tmp_path, **environment(address, tmp_path))
        assert done.returncode == 2
        assert done.stderr.startswith("exportw: init_weights: hf://ann/none: ")
        assert posts == []


def test_nothing_asks_the_hub_without_being_told_to(weights, tmp_path):
    with hub_server() as (address, models, posts):
        done = command("exportw", f"init_weights={weights}", "onnx_path=own/encoder.onnx", cwd=tmp_path, **environment(address, tmp_path))  # fmt: skip
        assert done.returncode == 0
        assert (models, posts) == ({}, [])


def test_the_card_says_what_it_is_and_its_snippet_runs(weights, tmp_path, monkeypatch):
    assert command("exportw", f"init_weights={weights}", "onnx_path=own/encoder.onnx", cwd=tmp_path).returncode == 0
    text = (tmp_path / "own/hf/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "feature-extraction"
    assert "license" not in head
    assert "Not stated" in text
    assert " clips." in text
    assert "| kl |" in text
    snippet = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(snippet, found)
    assert found["features"].shape[:2] == (1, 49)


def test_metrics_are_those_of_the_weights_and_an_edited_card_stays(weights, corpus, tmp_path):
    options = [f"init_weights={weights}", f"dataset.test_path={corpus / 'test.zip'}", "run_name=r", f"runs_root={weights.parents[3]}",
               f"evaluation.labels={corpus / 'labels.tsv'}", "probe.tasks=[frame_phones]", "probe.splits=2", "device=cpu"]  # fmt: skip
    assert command("evalsjepa", *options, cwd=tmp_path).returncode == 0
    cards = {}
    for name in ("best.pt", "last.pt"):
        done = command("exportw", f"init_weights={weights.parent / name}", f"onnx_path={name}/e.onnx", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        cards[name] = (tmp_path / name / "hf/README.md").read_text()
    assert "| kl |" in cards["best.pt"]
    assert "| frame_phones | linear | accuracy | best.pt |" in cards["best.pt"]
    assert "| kl |" not in cards["last.pt"]
    assert "## Probes" not in cards["last.pt"] or (weights.parent / "last.pt").read_bytes() == weights.read_bytes()
    card = tmp_path / "best.pt/hf/README.md"
    card.write_text("mine")
    assert command("exportw", f"init_weights={weights}", "onnx_path=best.pt/e.onnx", cwd=tmp_path).returncode == 0
    assert card.read_text() == "mine"


def test_torch_hub_loads_an_encoder(weights):
    from tests.test_layering import SOURCE

    encoder = torch.hub.load(str(SOURCE.parents[1]), "encoder", str(weights), source="local")
    assert encoder(torch.zeros(1, 8000)).shape[0] == 1


def test_a_folder_that_takes_normalised_audio_is_refused(weights, tmp_path):
    assert command("exportw", f"init_weights={weights}", "onnx_path=own/encoder.onnx", cwd=tmp_path).returncode == 0
    extractor = tmp_path / "own/hf/preprocessor_config.json"
    extractor.write_text(extractor.read_text().replace('"do_normalize": false', '"do_normalize": true'))
    done = command("exportw", f"init_weights={tmp_path / 'own/hf'}", "onnx_path=two/encoder.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert "do_normalize" in done.stderr
