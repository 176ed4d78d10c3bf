"""Data sets of the Hugging Face library, made on the spot: saved folders and Parquet, audio in
plain and nested fields."""

import numpy as np
import pytest

from sjepa.core.errors import UserError
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.clips import Clips
from sjepa.dataset.hub import HubOptions, audio_file, hub_rows
from sjepa.dataset.loader import Batching, Loader, Readers, WindowDataset
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops
from tests.support.audio import encode, tone
from tests.support.runs import history, run

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("library_cache")


def clips_of(address, cache=None, **options):
    sources = resolve_sources(address, HubOptions(**options))
    return Clips([scan(source, fallback_folder=cache) for source in sources], sample_rate=16000)


@pytest.fixture(scope="module")
def expected(corpus):
    return Clips([scan(source) for source in resolve_sources(str(corpus / "train.zip"))], sample_rate=16000)


@pytest.mark.parametrize("place", ["saved", "splits", "one.parquet", "many"])
def test_rows_are_clips(places, expected, place):
    clips = clips_of(f"hf://{places / place}", speaker_field="who", duration_field="length")
    assert clips.length_N.tolist() == expected.length_N.tolist()
    for position in (0, 7, 17):
        assert np.array_equal(
            clips.read(position, start=100, length=500), expected.read(position, start=100, length=500)
        )
    assert clips.labels(3) == {"speaker": expected.name(3).split("/")[-1].split("-")[0], "duration": 1.5}


def test_an_address_chooses_the_split_and_fields(places, expected):
    assert len(clips_of(f"hf://{places / 'splits'}?split=test")) == 4
    clips = clips_of(
        f"hf://{places / 'nested.parquet'}?audio_field=mp3&speaker_field=json.speaker_id&duration_field=json.duration_ms"
    )
    assert np.array_equal(clips.read(5), expected.read(5))
    assert clips.labels(5)["duration"] == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_archive(places, expected, workers):
    clips = clips_of(f"hf://{places / 'many'}")
    first, second = (
        list(
            Loader(
                WindowDataset(one, crops(one.length_N, 9000), seed=0, fewest_samples=720),
                Batching(4),
                Readers(workers),
            ).epoch(1)
        )
        for one in (clips, expected)
    )
    assert all(np.array_equal(a.clean_BS, b.clean_BS) for a, b in zip(first, second, strict=True))


def test_the_scan_is_kept_and_noticed_to_be_old(recordings, tmp_path):
    def save(count):
        rows = {"audio": [{"bytes": content, "path": name} for name, content in recordings[:count]]}
        datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio()).to_parquet(str(tmp_path / "a.parquet"))

    save(3)
    address = f"hf://{tmp_path / 'a.parquet'}"
    assert len(clips_of(address, tmp_path / "cache")) == 3
    (cache,) = (tmp_path / "cache").iterdir()
    before = cache.stat().st_mtime_ns
    clips_of(address, tmp_path / "cache")
    assert cache.stat().st_mtime_ns == before
    save(4)
    hub_rows.cache_clear()  # as another process finds it
    assert len(clips_of(address, tmp_path / "cache")) == 4


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://{places}/saved?audio_field=sound", r"has no field sound \(it has audio, who, length\)"),
        ("hf://{places}/nested.parquet?audio_field=mp3&speaker_field=json.name", "has no field json.name"),
        ("hf://{places}/splits?split=dev", "hf://.*splits: .*dev"),
        ("hf://{places}/saved?split=test", r"no split test \(it is one set without splits\)"),
        ("hf://{places}/saved?splt=train", r"not hf://NAME.*\(splt\)"),
        ("hf://", "not hf://NAME"),
        ("hf://nobody/has-this-set", "hf://nobody/has-this-set: "),
    ],
)
def test_mistakes_are_one_clear_line(places, address, message):
    with pytest.raises(UserError, match=message) as error:
        clips_of(address.format(places=places))
    assert len(str(error.value).splitlines()) == 1


def test_audio_comes_in_any_form_that_the_library_keeps(tmp_path):
    wave = tone(0.2)[:, 0]
    content = encode(wave[:, None], 16000, "wav")
    (tmp_path / "a.wav").write_bytes(content)
    forms = [
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        str(tmp_path / "a.wav"),
    ]
    assert all(audio_file(form).read() == content for form in forms)
    assert len(audio_file({"array": wave, "sampling_rate": 16000}).read()) > 4 * len(wave)
    for form in (None, {"bytes": None, "path": None}, {"bytes": None, "path": "nowhere.wav"}, 3):
        with pytest.raises(DecodeError, match=r"no audio in this row|neither audio nor a file"):
            audio_file(form)


def test_rows_that_are_no_audio_are_dropped_with_the_reason(tmp_path):
    rows = {"audio": [encode(tone(1.0), 16000, "wav"), b"nothing", None]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    clips = clips_of(f"hf://{tmp_path / 'a.parquet'}")
    assert len(clips) == 1
    assert [name for name, _ in clips.dropped] == ["a.parquet/1", "a.parquet/2"]
    assert clips.dropped[1][1] == "no audio in this row"


def test_nothing_is_written_beside_a_saved_set(places):
    before = sorted((places / "saved").iterdir())
    clips_of(f"hf://{places / 'saved'}").read(0)
    assert sorted((places / "saved").iterdir()) == before


@pytest.mark.slow
def test_training_from_a_data_set(places, corpus, tmp_path):
    address = f"dataset.train_path=hf://{places / 'splits'}"
    assert (
        run(corpus, tmp_path, address, f"dataset.test_path=hf://{places / 'splits'}?split=test", "train.epochs=1") == 0
    )
    assert len(history(tmp_path / "r/train")) == 1
    assert len(list((tmp_path / "r/cache").iterdir())) == 2


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'sjepa\[hf\]'"):
        clips_of("hf://some/set")
