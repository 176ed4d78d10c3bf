"""Training from a stream: Parquet files that are read as if they came over a line."""

import shutil
import threading

import numpy as np
import pytest
import torch

from sjepa.config.load import load_config
from sjepa.core.errors import UserError
from sjepa.dataset.augment import Augmentation
from sjepa.dataset.clips import Clips
from sjepa.dataset.hub import HubOptions, HubStream
from sjepa.dataset.loader import Readers
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.stream import StreamBatching, StreamLoader, contents, keep_some
from sjepa.entrypoints.train import train
from sjepa.tokenizer.schema import SCHEMA
from tests.support.audio import encode, tone
from tests.support.runs import assert_same_run, history, run, stopping_after
from tests.tokenizer import runs as token_runs

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("library_cache")
ROWS = 18


def stream_of(place, buffer_rows=5, seed=0, **options):
    return HubStream(HubOptions(str(place)), seed=seed, buffer_rows=buffer_rows, rows=ROWS, **options)


def kept_of(stream, folder):
    keep_some(stream, folder / "kept.tar", 6)
    return Clips([scan(source) for source in resolve_sources(str(folder / "kept.tar"))], sample_rate=16000)


def loader_of(place, folder, *, batch_size=4, augmentation=None, seconds=0.5, **options):
    stream = stream_of(place)
    plan = StreamBatching(batch_size, round(seconds * 16000), 1600, 0, 720)
    return StreamLoader(stream, plan, kept_of(stream, folder), augmentation=augmentation, readers=Readers(**options))


@pytest.mark.parametrize("place", ["many", "saved", "one.parquet"])
def test_every_row_comes_once_in_an_order_of_its_epoch(places, place):
    stream = stream_of(places / place)
    first, again, other = (list(stream.rows(epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert sorted(number for number, _ in first) == list(range(ROWS))
    contents = [[audio["bytes"] for _, audio in rows] for rows in (first, other)]
    assert contents[0] != contents[1]
    assert sorted(contents[0]) == sorted(contents[1])
    assert [audio["bytes"] for _, audio in stream_of(places / place, seed=1).rows(0)] != contents[0]


@pytest.mark.parametrize("readers", [2, 3])
def test_readers_share_the_rows(places, readers):
    stream = stream_of(places / "many")
    parts = [list(stream.rows(0, reader=reader, readers=readers)) for reader in range(readers)]
    contents = [audio["bytes"] for part in parts for _, audio in part]
    assert sorted(contents) == sorted(audio["bytes"] for _, audio in stream.rows(0))
    assert len({number for part in parts for number, _ in part}) == ROWS


def test_the_first_so_many_rows_can_be_asked_for(places):
    stream = stream_of(places / "many", most=7)
    assert stream.num_rows == 7
    assert len(list(stream.rows(0))) == 7


def test_who_does_not_say_its_length_is_asked(places, tmp_path):
    assert HubStream(HubOptions(str(places / "saved")), seed=0, buffer_rows=5).num_rows == ROWS
    shutil.copy(places / "one.parquet", tmp_path / "unknown.parquet")  # which the library never counted
    with pytest.raises(UserError, match=r"dataset\.hf\.rows: .*unknown\.parquet does not say how many rows it has"):
        HubStream(HubOptions(str(tmp_path / "unknown.parquet")), seed=0, buffer_rows=5)


def test_rows_are_heard_at_another_speed(places, tmp_path):
    """Targets and encoder alike: half a second becomes 0.4 s."""
    faster = Augmentation(16000, 720, 0.0, 0.0, (0.0, 5.0), (0.0, 5.0), p_speed=1.0, speed=(1.25, 1.25))
    plain = loader_of(places / "many", tmp_path).epoch(0)
    paced = loader_of(places / "many", tmp_path, augmentation=faster).epoch(0, augment=True)
    for one, other in zip(plain, paced, strict=True):
        assert list(other.num_samples) == [round(samples / 1.25) for samples in one.num_samples]
        assert torch.equal(other.clean_BS, other.heard_BS)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_epoch_goes_on_anywhere(places, tmp_path, threads):
    augmentation = Augmentation(16000, 720, 0.5, 0.5, (0.0, 5.0), (0.0, 5.0))
    loader = loader_of(places / "many", tmp_path, augmentation=augmentation, num_workers=threads)
    assert (loader.num_batches, loader.epoch_clips) == (4, 16)
    whole = list(loader.epoch(3, augment=True))
    rest = list(loader.epoch(3, first_batch=2, augment=True))
    assert [len(batch.names) for batch in whole] == [4, 4, 4, 4]
    for first, second in zip(whole[2:], rest, strict=True):
        assert first.names == second.names
        assert np.array_equal(first.clean_BS, second.clean_BS)
        assert np.array_equal(first.heard_BS, second.heard_BS)
        assert not np.array_equal(first.clean_BS, first.heard_BS)


def test_processes_take_equally_many_batches_and_no_clip_twice(places, tmp_path):
    ranks = [loader_of(places / "many", tmp_path, batch_size=3, rank=rank, size=2) for rank in (0, 1)]
    parts = [list(loader.epoch(0)) for loader in ranks]
    assert [len(part) for part in parts] == [3, 3] == [loader.num_rounds for loader in ranks]
    names = [name for part in parts for batch in part for name in batch.names]
    assert len(set(names)) == len(names) == 18
    rest = list(ranks[1].epoch(0, first_batch=4))
    assert [batch.names for batch in rest] == [batch.names for batch in parts[1][2:]]


def test_a_stream_that_is_shorter_than_was_said_is_told(places, tmp_path):
    stream = HubStream(HubOptions(str(places / "many")), seed=0, buffer_rows=5, rows=30)
    loader = StreamLoader(stream, StreamBatching(4, 8000, 1600, 0, 720), kept_of(stream, tmp_path))
    with pytest.raises(UserError, match=r"dataset\.hf\.rows: .*many ended after 18 rows, and not after 30"):
        list(loader.epoch(0))


def test_files_of_unequal_length_keep_all_processes_busy(recordings, tmp_path):
    for number, part in enumerate((recordings[:14], recordings[14:])):
        rows = {"audio": [content for _, content in part]}
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"train-{number:05d}-of-00002.parquet"))
    stream = HubStream(HubOptions(str(tmp_path)), seed=0, buffer_rows=5, rows=ROWS)
    (tmp_path / "kept").mkdir()
    kept = kept_of(stream, tmp_path / "kept")
    for rank in (0, 1):
        batches = list(
            StreamLoader(stream, StreamBatching(4, 8000, 1600, 0, 720), kept, readers=Readers(rank=rank, size=2)).epoch(
                0
            )
        )
        assert [len(batch.names) for batch in batches] == [4, 4]


def test_fewer_rows_than_a_batch_make_one(places, tmp_path):
    stream = stream_of(places / "many", most=3)
    loader = StreamLoader(stream, StreamBatching(8, 8000, 1600, 0, 720), kept_of(stream, tmp_path))
    assert [len(batch.names) for batch in loader.epoch(0)] == [3]


def test_the_number_of_batches_does_not_depend_on_the_processes(places, tmp_path):
    loaders = [loader_of(places / "many", tmp_path, rank=rank, size=3) for rank in range(3)]
    assert [loader.num_batches for loader in loaders] == [4, 4, 4]
    assert [[len(batch.names) for batch in loader.epoch(0)] for loader in loaders] == [[4, 4], [4, 0], [4, 0]]


def test_what_is_kept_is_kept_once(places, tmp_path):
    stream = stream_of(places / "many")
    assert len(kept_of(stream, tmp_path)) == 6
    written, before = (tmp_path / "kept.tar").stat().st_mtime_ns, (tmp_path / "kept.tar").read_bytes()
    kept_of(stream, tmp_path)
    assert (tmp_path / "kept.tar").stat().st_mtime_ns == written
    (tmp_path / "kept.tar").unlink()
    kept_of(stream, tmp_path)
    assert (tmp_path / "kept.tar").read_bytes() == before


def test_rows_that_are_no_audio_are_named_and_short_ones_left_out(tmp_path):
    audio = [encode(tone(1.0, seed=seed), 16000, "wav") for seed in range(4)]
    rows = {"audio": [audio[0], b"nothing", encode(tone(0.05), 16000, "wav"), None, *audio[1:]]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    stream = HubStream(HubOptions(str(tmp_path / "a.parquet")), seed=0, buffer_rows=3, rows=7)
    batches = list(StreamLoader(stream, StreamBatching(7, 8000, 1600, 0, 720), kept_of(stream, tmp_path)).epoch(0))
    assert len(batches[0].names) == 4
    assert len(batches[0].failures) == 2
    assert {failure.reason for failure in batches[0].failures} >= {"no audio in this row"}


def test_clips_held_out_for_the_test_are_passed_over(places, tmp_path):
    """In every epoch, whatever the order of the rows."""
    stream, kept = stream_of(places / "many"), kept_of(stream_of(places / "many"), tmp_path)
    test = kept.subset(np.array([1, 4]))
    tested = {test.read(position).tobytes() for position in range(2)}

    def heard(without, epoch):
        plan = StreamBatching(4, 5 * 16000, 1600, 0, 720)
        batches = StreamLoader(stream, plan, kept, without=without).epoch(epoch)
        rows = [(batch.clean_BS, batch.num_samples) for batch in batches if batch.num_samples]
        return [
            clip[:length].numpy().tobytes()
            for clean, lengths in rows
            for clip, length in zip(clean, lengths, strict=True)
        ]

    for epoch in (0, 1):
        everything, left = heard(frozenset(), epoch), heard(contents(tmp_path / "kept.tar", test), epoch)
        assert tested & set(everything)
        assert left == [clip for clip in everything if clip not in tested]


@pytest.mark.slow
def test_a_tokenizer_trains_on_a_stream_and_is_tested_on_other_clips(places, tmp_path, capsys):
    """By the names that the specification's flags stand for; rows of a batch that were held out are
    missing."""
    given = [option for option in options(places) if "epochs" not in option]
    held = ["dataset.test_path=null", "dataset.held_out=0.2", "train.epochs=1"]
    config = load_config(SCHEMA, None, [*token_runs.SMALL, *given, *held, f"runs_root={tmp_path}"])
    assert train(token_runs.SYSTEM, config) == 0
    rows = history(tmp_path / "t/train")
    said = capsys.readouterr().out
    assert "test" in said
    assert float(rows[0]["audio_hours"]) < 18 * 2 / 3600
    assert float(rows[0]["val_error"]) > 0


def test_leaving_early_leaves_no_thread(places, tmp_path):
    loader, before = loader_of(places / "many", tmp_path, batch_size=1), threading.active_count()
    batches = loader.epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_a_line_that_breaks_is_one_clear_error(places, tmp_path, monkeypatch):
    loader = loader_of(places / "many", tmp_path)
    monkeypatch.setattr(
        datasets.IterableDataset, "__iter__", lambda *_: (_ for _ in ()).throw(ConnectionError("line\nbroke"))
    )
    with pytest.raises(UserError, match=r"hf://.*many: line broke"):
        list(loader.epoch(0))


def options(places, *more):
    return [f"dataset.train_path=hf://{places / 'many'}", "dataset.hf.streaming=true", f"dataset.hf.rows={ROWS}",
            "dataset.hf.shuffle_buffer=5", "train.epochs=3", *more]  # fmt: skip


@pytest.mark.slow
def test_a_run_from_a_stream_goes_on_exactly(places, corpus, tmp_path, capsys):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert run(corpus, tmp_path / "whole", *options(places)) == 0
    assert f"18 rows of {places / 'many'} as they come; kept of them: 18 clips" in capsys.readouterr().out
    assert len(history(tmp_path / "whole/r/train")) == 3
    with stopping_after(3):
        assert run(corpus, tmp_path / "stopped", *options(places)) == 143
    assert run(corpus, tmp_path / "stopped", *options(places), "checkpoint.resume=true") == 0
    assert_same_run(tmp_path / "whole/r/train", tmp_path / "stopped/r/train")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_batch_seconds=20", "a stream does not say how long its clips are"),
        ("dataset.train_path=a.zip", "hf.streaming needs train_path to be one hf:// address"),
        ("dataset.long_clips=windows", "hf.streaming goes with long_clips: crop"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(places, corpus, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run(corpus, tmp_path, *options(places, override))
