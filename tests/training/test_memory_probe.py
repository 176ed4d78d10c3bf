"""train.probe_memory: the largest micro-batch first, and no trace of it."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.dataset.blend import Blend
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Batching, Loader, WindowDataset
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import Windows
from sjepa.s_jepa.method import SJEPASystem
from sjepa.s_jepa.model import SJEPA
from tests.support.runs import TWO_PHASES, assert_same_run, run, stopping_after


@pytest.mark.slow
def test_the_probe_runs_the_largest_batches_and_leaves_no_trace(corpus, tmp_path, monkeypatch, capsys):
    options = [*TWO_PHASES, "train.epochs=2", "train.masked_only_step=null", "train.max_batch_seconds=5"]
    assert run(corpus, tmp_path / "without", *options) == 0
    shapes, original = [], SJEPA.forward

    def watched(self, waveform_BS, *rest):
        if not isinstance(waveform_BS, FakeTensor):  # the estimate of the memory
            shapes.append(tuple(waveform_BS.shape))
        return original(self, waveform_BS, *rest)

    monkeypatch.setattr(SJEPA, "forward", watched)
    capsys.readouterr()
    assert run(corpus, tmp_path / "with", *options, "train.probe_memory=true") == 0
    assert_same_run(tmp_path / "without/r/train", tmp_path / "with/r/train")
    assert "memory: the largest micro-batches (" in capsys.readouterr().out
    probed = shapes[: shapes.index(shapes[0], 1)]  # they come again for the second phase
    assert shapes[: 2 * len(probed)] == probed * 2
    rest = [shape for shape in shapes[2 * len(probed) :] if shape[0] * shape[1] <= 5 * 16000]  # those of training
    assert max(clips * samples for clips, samples in rest) == max(clips * samples for clips, samples in probed)
    assert max(samples for _, samples in rest) == max(samples for _, samples in probed)


def test_the_largest_batch_of_a_blend_is_one_of_any_epoch(corpus):
    """The long clip may not come in the first epoch."""
    clips = Clips([scan(source) for source in resolve_sources(str(corpus / "train.zip"))], sample_rate=16000)
    windows = Windows(np.arange(18), np.zeros(18, int), np.array([48000, *[8000] * 17]))
    blend = Blend(np.array([0] * 9 + [1] * 9), (1.0, 50.0), seed=0)
    loader = Loader(WindowDataset(clips, windows, seed=0, fewest_samples=720, blend=blend), Batching(4, 60000))
    drawn = {
        int(windows.length_N[batch].max())
        for epoch in range(4)
        for batch in loader.batching.batches(loader.dataset, epoch)
    }
    assert drawn == {8000}
    assert (1, 48000) in loader.largest_batches()


@pytest.mark.slow
def test_the_probe_runs_the_spectral_loss_of_a_stage_that_has_it(corpus, tmp_path, monkeypatch):
    spectral, original = [], SJEPA.forward

    def watched(self, *inputs):
        if not isinstance(inputs[0], FakeTensor):
            spectral.append(inputs[6])
        return original(self, *inputs)

    monkeypatch.setattr(SJEPA, "forward", watched)
    with stopping_after(1):
        run(corpus, tmp_path, "train.spectral_warmup=0.5", "train.probe_memory=true")
    shapes = spectral.index(False)  # the stage with spectrum is probed before the one without
    assert shapes > 0
    assert spectral[shapes : 2 * shapes] == [False] * shapes


@pytest.mark.slow
def test_a_run_hands_its_first_network_over(corpus, tmp_path, monkeypatch):
    """Whoever keeps it keeps its memory when another one takes its place (FSDP)."""
    started, original = [], SJEPASystem.start

    def remember(self, *inputs, **options):
        started.append(original(self, *inputs, **options))
        return started[-1]

    monkeypatch.setattr(SJEPASystem, "start", remember)
    with stopping_after(1):
        run(corpus, tmp_path)
    assert not hasattr(started[0], "network")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_does_not_fit_is_told_before_the_first_update(corpus, tmp_path, monkeypatch, error):
    def fails(self, model, loss):
        raise error

    monkeypatch.setattr(Engine, "backward", fails)
    with pytest.raises(UserError, match=r"train\.probe_memory: a micro-batch of 4 clips of \d\.\d s does not fit"):
        run(corpus, tmp_path, "train.probe_memory=true")
    assert not list((tmp_path / "r/train/checkpoints").glob("*"))


@pytest.mark.slow
def test_other_errors_are_not_taken_for_it(corpus, tmp_path, monkeypatch):
    def fails(self, model, loss):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Engine, "backward", fails)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(corpus, tmp_path, "train.probe_memory=true")
