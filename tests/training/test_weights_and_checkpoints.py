import os
import pickle
import subprocess
import sys

import pytest
import torch

from sjepa import load_encoder
from sjepa.core.errors import UserError
from sjepa.s_jepa.weights import Weights, load_weights, save_weights
from sjepa.training.checkpoint import Checkpoints
from tests.support.steps import Setup


class Part:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": torch.tensor(self.value)}

    def load_state_dict(self, state):
        self.value = int(state["value"])


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.fixture
def weights():
    setup = Setup()
    config = setup.config.model_dump(mode="json", by_alias=True)
    return Weights(setup.network, setup.targets.gmm, config, {"phase": 1, "visible_loss": True}, {"epoch": 3})


@pytest.mark.slow
def test_weights_are_self_contained(tmp_path, weights):
    save_weights(tmp_path / "best.pt", weights)
    back = load_weights(tmp_path / "best.pt")
    assert back.config == weights.config
    assert back.progress == {"epoch": 3}
    assert back.stage == {"phase": 1, "visible_loss": True}
    assert back.target_encoder is None
    for a, b in ((weights.model, back.model), (weights.gmm, back.gmm)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.slow
def test_the_encoder_can_be_used_alone(tmp_path, weights):
    save_weights(tmp_path / "best.pt", weights)
    encoder = load_encoder(tmp_path / "best.pt")
    waveform, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 8000])
    features = encoder(waveform, lengths)
    assert features.shape == (2, 49, 32)
    assert encoder.feature_lengths(lengths).tolist() == [49, 24]
    assert not encoder.training
    layers = encoder(waveform, lengths, layer="all")
    assert len(layers) == encoder.num_layers
    assert torch.equal(layers[-1], features)
    assert torch.equal(load_encoder(tmp_path / "best.pt", layer=0)(waveform, lengths), layers[0])
    for wrong in (encoder.num_layers, -encoder.num_layers - 1):
        with pytest.raises(ValueError, match="the encoder has layers 0 to"):
            load_encoder(tmp_path / "best.pt", layer=wrong)
    with pytest.raises(ValueError, match="shorter than"):
        encoder(waveform, torch.tensor([16000, 399]))


@pytest.mark.slow
def test_using_an_encoder_imports_no_training_code(tmp_path, weights):
    save_weights(tmp_path / "best.pt", weights)
    program = (
        "import sys; from sjepa import load_encoder; load_encoder(sys.argv[1]);"
        "print(*(name for name in sys.modules if name.startswith('sjepa.')))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "best.pt")], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[1] for name in shown.stdout.split()}
    assert loaded == {"core", "features", "gmm", "modules", "s_jepa"}  # neither config nor dataset nor training


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"kind": "sjepa weights", "format": 1, "model": Malicious()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(UserError, match="not a file of sjepa weights"):
            load_weights(name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"kind": "sjepa checkpoint", "format": 1}])
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a file of sjepa weights"):
        load_weights(tmp_path / "x.pt")


@pytest.mark.slow
def test_damaged_incomplete_and_newer_files_are_refused(tmp_path, weights):
    path = tmp_path / "best.pt"
    save_weights(path, weights)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 99, "version": "9.0"}, tmp_path / "newer.pt")
    with pytest.raises(UserError, match=r"install 9\.0"):
        load_weights(tmp_path / "newer.pt")
    del content["model"]["predictor.mask_token"]
    torch.save(content, tmp_path / "incomplete.pt")
    with pytest.raises(UserError, match="incomplete weights"):
        load_weights(tmp_path / "incomplete.pt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        load_weights(path)
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "none.pt")


def test_checkpoints_rotate_and_keep_their_order(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for epoch, step in [(0, 5), (0, 10), (0, None), (1, 15), (1, None), (10, None)]:
        checkpoints.save({"part": Part(step or 0)}, epoch=epoch, step=step)
    assert [path.name for path in checkpoints.paths()] == [
        "epoch_001_step_0000015.pth",
        "epoch_001.pth",
        "epoch_010.pth",
    ]


def test_a_checkpoint_gives_state_back_or_changes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    path = checkpoints.save({"a": Part(7)}, epoch=0)
    part = Part(0)
    with pytest.raises(UserError, match="incomplete, without b"):
        checkpoints.load(path, {"a": part, "b": Part(0)})
    assert part.value == 0
    checkpoints.load(path, {"a": part})
    assert part.value == 7


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = checkpoints.save({"a": Part(7)}, epoch=0)
    before = path.read_bytes()

    class Broken(Part):
        def state_dict(self):
            return {"value": lambda: 0}  # cannot be pickled

    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        checkpoints.save({"a": Broken(1)}, epoch=0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["epoch_000.pth"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits on file sizes are POSIX")
def test_a_full_disk_is_told_and_the_previous_checkpoint_stays(tmp_path):
    """A limit on the size of files stands in for the disk, in a process of its own."""
    code = f"""
import resource, signal, torch
from pathlib import Path
from sjepa.core.errors import UserError
from sjepa.training.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Part:
    def __init__(self, size): self.size = size
    def state_dict(self): return {{"value": torch.zeros(self.size)}}
checkpoints = Checkpoints(Path({str(tmp_path)!r}), keep=1)
checkpoints.save({{"a": Part(10)}}, epoch=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save({{"a": Part(1_000_000)}}, epoch=1)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "epoch_001.pth: cannot be written" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["epoch_000.pth"]
