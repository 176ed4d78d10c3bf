"""train.compile: the same run from compiled layers."""

import shutil

import numpy as np
import pytest
import torch

from sjepa.core.errors import UserError
from sjepa.modules.transformer import TransformerLayer, TransformerShape
from sjepa.training.compilation import compile_layers
from tests.support.runs import TWO_PHASES, history, run

pytestmark = pytest.mark.slow

SMALL = ["model.overrides.num_layers=1", "gmm.ema_layer=0"]
NO_DROPOUT = [
    f"model.overrides.{name}=0" for name in ("dropout", "attention_dropout", "activation_dropout", "predictor_dropout")
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_a_compiled_run_has_the_same_losses(corpus, tmp_path):
    """In both phases; sums are made in another order. Without dropout, whose draws are torch's in
    compiled layers."""
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    folders = []
    for name in ("plain", "compiled"):
        options = [*TWO_PHASES, *SMALL, *NO_DROPOUT, f"train.compile={'true' if name == 'compiled' else 'false'}"]
        assert run(corpus, tmp_path / name, *options) == 0
        folders.append(tmp_path / name / "r/train")
    plain, compiled = (
        np.array([[float(row[key]) for key in ("train_loss", "val_loss")] for row in history(folder)])
        for folder in folders
    )
    assert np.abs(compiled / plain - 1).max() < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled_before


def test_layers_that_ddp_would_cut_are_compiled_whole(tmp_path):
    """A layer of more weights than a bucket: without its code being generated, which would take
    long."""
    torch._dynamo.reset()
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        layers = torch.nn.ModuleList(TransformerLayer(TransformerShape(64, 2, 128)) for _ in range(2))
        compile_layers(list(layers), backend="aot_eager")

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = layers

            def forward(self, x, passed_by):
                for index, layer in enumerate(self.layers):
                    x = layer(x, None, passed_by=index == passed_by)
                return x

        network = torch.nn.parallel.DistributedDataParallel(Network(), bucket_cap_mb=0.02)
        for clips, frames, passed_by in ((3, 11, -1), (2, 17, 1), (1, 9, -1)):
            network(torch.randn(clips, frames, 64), passed_by).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled_before
    finally:
        torch.distributed.destroy_process_group()
        torch._dynamo.reset()


def test_a_machine_without_a_compiler_says_so_before_anything(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"train.compile: true needs a C\+\+ compiler"):
        run(corpus, tmp_path, "train.compile=true")
    assert not (tmp_path / "r/train").exists()
