import numpy as np
import pytest
import torch

from sjepa.core.distributed import Engine
from sjepa.dataset.batch import Failure
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Batching, Loader, WindowDataset
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import tiles
from sjepa.evaluation.features import ClipBatches
from sjepa.s_jepa.units.dump import encoder_reader, units, write_dump
from tests.support.steps import Setup


@pytest.fixture(scope="module")
def parts(corpus):
    clips = Clips([scan(source) for source in resolve_sources(str(corpus / "test.zip"))], sample_rate=16000)
    model = Setup().network
    return clips, model, Engine(device="cpu", precision="fp32", launch=False)


def dumped(parts, folder, *, batch_size, max_samples=10**9, top_k=3, break_window=None):
    clips, model, engine = parts
    windows = tiles(clips.length_N, max_samples, min_samples=1600)
    loader = Loader(WindowDataset(clips, windows, seed=0, fewest_samples=720), Batching(batch_size, shuffle=False))
    batches = list(loader.epoch(0))
    if break_window is not None:
        batches = [batch for batch in batches if break_window not in batch.window]
    failures: list[Failure] = []
    found = units(
        encoder_reader(engine, model), ClipBatches(batches, windows, len(clips)), top_k=top_k, warn=failures.append
    )
    written = write_dump(folder, clips, found)
    return written, dict(np.load(folder / "posteriors.npz")), (folder / "units.km").read_text().splitlines()


@torch.no_grad()
def test_units_and_posteriors_are_the_encoders(parts, tmp_path):
    clips, model, _ = parts
    (count, frames), arrays, lines = dumped(parts, tmp_path, batch_size=3)
    assert count == len(clips) == len(lines) == len(arrays["clip"])
    assert frames == arrays["first_frame"][-1] == len(arrays["components"]) == len(arrays["posteriors"])
    model.eval()
    for number in range(len(clips)):
        rows = slice(*arrays["first_frame"][number : number + 2])
        posterior = model.head(model.encoder(torch.from_numpy(clips.read(number))[None]).features_BTD[0]).softmax(-1)
        best = posterior.topk(3)
        # components of almost the same posterior may change places
        assert np.abs(arrays["posteriors"][rows] - best.values.numpy()).max() < 1e-3
        given = np.take_along_axis(posterior.numpy(), arrays["components"][rows].astype(int), axis=1)
        assert np.abs(given - best.values.numpy()).max() < 1e-3
        assert [int(unit) for unit in lines[number].split()] == arrays["components"][rows][:, 0].tolist()
        assert arrays["clip"][number] == clips.path(number)
    table = (tmp_path / "units.tsv").read_text().splitlines()
    assert table[0] == "path\tsamples\tframes"
    assert table[1].split("\t") == [clips.path(0), str(clips.length_N[0]), str(len(lines[0].split()))]
    assert not list(tmp_path.glob(".*"))


def test_windows_of_a_clip_are_joined_and_a_broken_clip_is_left_out(parts, tmp_path):
    clips, _, _ = parts
    windows = tiles(clips.length_N, 12000, min_samples=1600)
    (count, _), arrays, lines = dumped(parts, tmp_path / "a", batch_size=1, max_samples=12000, top_k=99)
    first = arrays["first_frame"]
    for clip, line in enumerate(lines):
        starts = arrays["start"][first[clip] : first[clip + 1]]
        own = [set(range(start, start + length - 399, 320)) for start, length in
               zip(windows.start_N[windows.clip_N == clip], windows.length_N[windows.clip_N == clip], strict=True)]  # fmt: skip
        assert len(line.split()) == len(starts)
        assert (np.diff(starts) > 0).all()  # none twice, though the last window is drawn back
        assert set(starts.tolist()) == own[0].union(
            *(frames - {s for s in frames if s <= max(own[i])} for i, frames in enumerate(own[1:]))
        )
    assert arrays["components"].shape[1] == parts[1].shape.num_clusters  # all there are
    assert np.abs(arrays["posteriors"].astype(float).sum(1) - 1).max() < 5e-3
    middle = int(np.flatnonzero(windows.clip_N == 1)[0])
    (left, _), arrays, again = dumped(parts, tmp_path / "b", batch_size=1, max_samples=12000, break_window=middle)
    assert left == count - 1
    assert again == lines[:1] + lines[2:]
    assert clips.path(1) not in arrays["clip"]
