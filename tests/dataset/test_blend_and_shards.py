"""What an epoch draws from several corpora, and how few sources are open at a time."""

import shutil
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest

from sjepa.core.errors import UserError
from sjepa.dataset.blend import Blend, turns
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Batching, Loader, WindowDataset
from sjepa.dataset.order import in_lanes
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops
from sjepa.s_jepa.schema import load_config
from tests.support.runs import assert_same_run, run, stopping_after


def clips_of(paths, **options):
    return Clips(
        [scan(source) for source in resolve_sources([str(path) for path in paths])], sample_rate=16000, **options
    )


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """18 clips in six tar files."""
    folder = tmp_path_factory.mktemp("shards")
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        archive.extractall(folder / "all")
    names = sorted((folder / "all").rglob("*.flac"))
    for number in range(6):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for path in names[number::6]:
                archive.add(path, path.relative_to(folder / "all").as_posix())
    return folder


def test_an_epoch_has_the_proportions_and_uses_all_alike():
    """Three corpora of 60, 30 and 10 windows at 1 : 1 : 2."""
    corpus_M = np.repeat([0, 1, 2], [60, 30, 10])
    blend = Blend(corpus_M, (0.5, 0.5, 1.0), seed=1)
    assert blend.draws().tolist() == [25, 25, 50]
    heard = Counter()
    for epoch in range(12):
        drawn = blend.draw(epoch)
        assert np.bincount(corpus_M[drawn]).tolist() == [25, 25, 50]
        assert np.array_equal(drawn, blend.draw(epoch))
        heard.update(drawn.tolist())
        for number in range(3):  # none comes twice before all came
            own = [heard[window] for window in np.flatnonzero(corpus_M == number)]
            assert max(own) - min(own) <= 1
    assert not np.array_equal(blend.draw(0), Blend(corpus_M, (0.5, 0.5, 1.0), seed=2).draw(0))


def test_a_share_below_one_clip_is_refused(shards, corpus, tmp_path):
    paths = f"dataset.train_path=[{{path: '{shards}/[0-4].tar', weight: 1000}}, {{path: {shards}/5.tar, weight: 1}}]"
    with pytest.raises(UserError, match=r"the weight of .*5\.tar is too small for even one clip of an epoch"):
        run(corpus, tmp_path, paths)


def test_equal_shares_of_equal_corpora_are_every_window_once():
    assert sorted(Blend(np.arange(40) % 2, (3.0, 3.0), seed=0).draw(5).tolist()) == list(range(40))


def test_the_turn_of_a_window_counts_its_earlier_ones():
    batches = [np.array([3, 1]), np.array([3, 3, 2]), np.array([1])]
    assert [list(turn) for turn in turns(batches)] == [[0, 0], [1, 2, 0], [1]]
    assert turns([]) == []


@pytest.mark.parametrize("max_batch_samples", [None, 60_000])
def test_a_mixed_epoch_is_as_long_as_any_and_goes_on_anywhere(shards, max_batch_samples):
    clips = clips_of([shards / "all"])
    blend = Blend((np.arange(18) >= 15).astype(int), (1.0, 1.0), seed=0)
    dataset = WindowDataset(clips, crops(clips.length_N, 10_000), seed=0, fewest_samples=720, blend=blend)
    loader = Loader(dataset, Batching(4, max_batch_samples))
    for epoch in range(6):
        batches = list(loader.epoch(epoch))
        assert len(batches) == loader.num_batches
        rest = list(loader.epoch(epoch, first_batch=2))
        assert [batch.names for batch in rest] == [batch.names for batch in batches[2:]]
        assert all(np.array_equal(a.clean_BS, b.clean_BS) for a, b in zip(rest, batches[2:], strict=True))
    # the same clip several times in one epoch is cropped anew each time
    pieces = {}
    for batch in loader.epoch(0):
        for clip, wave in zip(batch.clip_id_B.tolist(), batch.clean_BS, strict=True):
            pieces.setdefault(clip, []).append(wave.numpy().tobytes())
    assert max(len(own) for own in pieces.values()) >= 3
    assert all(len(set(own)) == len(own) for own in pieces.values())


@pytest.mark.parametrize("max_batch_samples", [None, 60_000])
@pytest.mark.parametrize(("lanes", "readers"), [(2, 2), (3, 1), (6, 3), (4, 2)])
def test_few_sources_are_open_and_every_clip_comes_once(shards, max_batch_samples, lanes, readers):
    clips = clips_of(sorted(shards.glob("*.tar")))
    dataset = WindowDataset(clips, crops(clips.length_N, 10_000), seed=0, fewest_samples=720)
    batching = Batching(2, max_batch_samples, shards_at_once=lanes)
    orders = set()
    for epoch in range(4):
        batches = batching.batches(dataset, epoch)
        assert len(batches) == len(batching.batches(dataset, 0))
        assert sorted(np.concatenate(batches).tolist()) == list(range(18))
        source = [set(clips.source_N[batch].tolist()) for batch in batches]
        assert all(len(own) == 1 for own in source)
        orders.add(tuple(source[0]))
        if 6 % lanes == 0:  # lanes of equal length: each of `readers` meets its share of the sources
            for reader in range(readers):
                assert len(set().union(*source[reader::readers])) == 6 // readers
        sequence = [next(iter(own)) for own in source]
        last = {shard: len(sequence) - 1 - sequence[::-1].index(shard) for shard in range(6)}
        for place in range(len(sequence)):  # begun and not finished
            assert sum(sequence.index(shard) <= place <= last[shard] for shard in range(6)) <= lanes
    assert len(orders) > 1


def test_lanes_that_end_early_leave_the_others_going():
    shards = [[np.array([shard, number])] * size for shard, size in enumerate((9, 1, 1)) for number in range(1)]
    order = [int(batch[0]) for batch in in_lanes(shards, 2, seed=0, epoch=0)]
    assert Counter(order) == {0: 9, 1: 1, 2: 1}


def test_partners_come_from_the_same_source(shards):
    paths = sorted(shards.glob("*.tar"))
    apart, together = clips_of(paths, sources_apart=True), clips_of(paths)
    for position in (0, 7, 17):
        assert apart.neighbours(position).tolist() == [p for p in range(18) if p // 3 == position // 3]
        assert len(together.neighbours(position)) == 18
    assert apart.subset(np.array([1, 2, 9])).neighbours(0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "[{path: a.zip, weight: 1}, b.zip]",
            "'b.zip' is not {path: …, weight: …}, which the other corpora of the list are",
        ),
        ("[{path: a.zip, weight: 0}]", "weight 0 is not a number above 0"),
        ("[{path: a.zip, weights: 1}]", "is not {path: …, weight: …}"),
        ("[{path: [], weight: 1}]", r"\[\] is not a path or a list of paths"),
    ],
)
def test_mistakes_in_weights_are_named(value, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [f"dataset.train_path={value}"])


def test_weights_and_shards_do_not_go_together():
    with pytest.raises(UserError, match="shards_at_once does not go with weights"):
        load_config(None, ["dataset.train_path=[{path: a.zip, weight: 1}]", "dataset.shards_at_once=2"])


def weighted(shards):
    one, other = f"{shards}/[0-3].tar", f"{shards}/[45].tar"
    return f"dataset.train_path=[{{path: '{one}', weight: 1}}, {{path: ['{other}'], weight: 2}}]"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "shards"])
def test_a_run_goes_on_exactly(corpus, shards, tmp_path, kind, capsys):
    options = ["train.epochs=3"]
    options += (
        [weighted(shards)] if kind == "weights" else [f"dataset.train_path={shards}/*.tar", "dataset.shards_at_once=2"]
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    assert run(corpus, tmp_path / "whole", *options) == 0
    told = capsys.readouterr().out
    if kind == "weights":
        assert f"33% of an epoch from {shards}/[0-3].tar: 12 clips" in told
        assert "67% of an epoch from" in told
    with stopping_after(4):
        assert run(corpus, tmp_path / "stopped", *options) == 143
    assert run(corpus, tmp_path / "stopped", *options, "checkpoint.resume=true") == 0
    assert_same_run(tmp_path / "whole/r/train", tmp_path / "stopped/r/train")


def test_a_corpus_without_clips_is_named(corpus, shards, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = f"dataset.train_path=[{{path: '{shards}/0.tar', weight: 1}}, {{path: {tmp_path}/empty, weight: 1}}]"
    with pytest.raises(UserError, match=r"no clip of .*empty can be used"):
        run(corpus, tmp_path, paths)
    shutil.copy(shards / "0.tar", tmp_path / "a.tar")
    twice = f"dataset.train_path=[{{path: {tmp_path}/a.tar, weight: 1}}, {{path: '{tmp_path}/*.tar', weight: 1}}]"
    with pytest.raises(UserError, match="the same source is in more than one corpus"):
        run(corpus, tmp_path, twice)
