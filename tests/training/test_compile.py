"""train.compile: the same run from compiled layers."""

import shutil

import numpy as np
import pytest

from sjepa.core.errors import UserError
from tests.training.test_run import history, run
from tests.training.test_two_phases import TWO_PHASES

STILL = ["model.overrides.num_layers=1", "model.overrides.dropout=0.0", "model.overrides.attention_dropout=0.0",
         "model.overrides.activation_dropout=0.0", "model.overrides.predictor_dropout=0.0", "gmm.ema_layer=0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_a_compiled_run_has_the_same_losses(corpus, tmp_path):
    """In both phases; sums are made in another order."""
    folders = []
    for name in ("plain", "compiled"):
        options = [*TWO_PHASES, *STILL, f"train.compile={'true' if name == 'compiled' else 'false'}"]
        assert run(corpus, tmp_path / name, *options) == 0
        folders.append(tmp_path / name / "r/train")
    plain, compiled = (
        np.array([[float(row[key]) for key in ("train_loss", "val_loss")] for row in history(folder)])
        for folder in folders
    )
    assert np.abs(compiled / plain - 1).max() < 1e-4


def test_a_machine_without_a_compiler_says_so_before_anything(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"train.compile: true needs a C\+\+ compiler"):
        run(corpus, tmp_path, "train.compile=true")
    assert not (tmp_path / "r/train").exists()
