"""s3prl's own upstream `hf_hubert_custom` on an exported folder."""

import pytest
import torch

from sjepa import load_encoder
from tests.support.commands import command
from tests.support.runs import run


@pytest.mark.slow
def test_the_upstream_gives_the_encoders_features(corpus, tmp_path):
    hubconf = pytest.importorskip("s3prl.upstream.hf_hubert.hubconf", reason="s3prl is not installed")
    assert run(corpus, tmp_path, "train.epochs=1") == 0
    weights = tmp_path / "r/train/weights/best.pt"
    assert command("exportw", f"init_weights={weights}", "onnx_path=out/encoder.onnx", cwd=tmp_path).returncode == 0
    upstream = hubconf.hf_hubert_custom(str(tmp_path / "out/hf")).eval()
    waveform = torch.randn(16000) * 0.1
    with torch.no_grad():
        states = upstream([waveform])["hidden_states"]
        layers = load_encoder(weights, layer="all")(waveform[None])
    assert len(states) == len(layers) + 1
    for ours, theirs in zip(layers, states[1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
