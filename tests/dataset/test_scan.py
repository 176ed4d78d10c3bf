import json
import os

import numpy as np
import pytest

from sjepa.dataset import scan as scan_module
from sjepa.dataset.clips import Clips
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from tests.support.archives import make_folder, make_tar, make_zip
from tests.support.audio import encode, tone


def table_of(path, **options):
    return scan(resolve_sources(str(path))[0], **options)


def examined(monkeypatch):
    """Counts the files that scans look into from now on."""
    count = []
    original = scan_module.probe
    monkeypatch.setattr(scan_module, "probe", lambda file, **options: count.append(1) or original(file, **options))
    return count


def test_the_second_scan_reads_the_cache(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "train.zip")
    first = table_of(path)
    assert (tmp_path / "train.cache.json").exists()
    count = examined(monkeypatch)
    second = table_of(path)
    assert count == []
    assert second.names == first.names
    assert np.array_equal(second.samples, first.samples)


def test_a_changed_source_is_scanned_again(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "train")
    assert len(table_of(folder)) == 7
    (folder / "new.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    assert len(table_of(folder)) == 8
    count = examined(monkeypatch)
    assert len(table_of(folder)) == 8
    assert count == []


def test_without_validation_a_cache_is_trusted(tmp_path):
    folder = make_folder(tmp_path / "train")
    table_of(folder)
    (folder / "new.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    assert len(table_of(folder, depth=False)) == 7


def test_a_deeper_check_scans_again_and_serves_the_shallower(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "train.zip")
    table_of(path, depth="header")
    count = examined(monkeypatch)
    table_of(path, depth="full")
    assert len(count) == 7
    table_of(path)
    assert len(count) == 7


def test_depths_find_what_they_look_at(tmp_path):
    samples = tone(6.0)
    samples[48000] = np.nan  # in the middle, where only a full scan looks
    import soundfile

    soundfile.write(tmp_path / "middle.wav", samples, 16000, subtype="FLOAT")
    samples[-10] = np.nan
    soundfile.write(tmp_path / "end.wav", samples, 16000, subtype="FLOAT")
    found = {depth: len(table_of(tmp_path, depth=depth)) for depth in ("header", True, "full")}
    assert found == {"header": 2, True: 1, "full": 0}


def test_files_that_change_places_or_names_are_noticed(tmp_path):
    """Their size, the latest time and their number stay as they were."""
    for seed, name in enumerate(("a.wav", "b.wav")):
        (tmp_path / name).write_bytes(encode(tone(1.0 + seed), 16000, "wav").ljust(70_000, b"\0"))
        os.utime(tmp_path / name, ns=(1 + seed, 1 + seed))
    before = table_of(tmp_path).samples.tolist()
    (tmp_path / "a.wav").rename(tmp_path / "c.wav")
    (tmp_path / "b.wav").rename(tmp_path / "a.wav")
    (tmp_path / "c.wav").rename(tmp_path / "b.wav")
    assert table_of(tmp_path).samples.tolist() == before[::-1]
    (tmp_path / "b.wav").rename(tmp_path / "d.wav")
    assert table_of(tmp_path).names == ["a.wav", "d.wav"]


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_files_of_a_manifest_that_are_made_anew_are_noticed(tmp_path, kind):
    """Converted in place, under the same names, the manifest untouched."""
    (tmp_path / "a.wav").write_bytes(encode(tone(1.0, 48000), 48000, "wav"))
    manifest = tmp_path / f"list.{kind}"
    manifest.write_text('{"path": "a.wav"}\n' if kind == "jsonl" else ".\na.wav\t48000\n")
    assert table_of(manifest).rate.tolist() == [48000]
    (tmp_path / "a.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    assert table_of(manifest).rate.tolist() == [16000]


def test_sources_of_one_stem_have_caches_of_their_own(tmp_path):
    make_folder(tmp_path / "train")
    make_zip(tmp_path / "train.zip")
    make_tar(tmp_path / "train.tar", "w")
    for _ in range(2):
        for name in ("train.zip", "train.tar", "train"):
            assert table_of(tmp_path / name).source.path.name == name
    caches = sorted(path.name for path in tmp_path.glob("*.cache.json"))
    assert caches[0] == "train.cache.json"
    assert "train.tar.cache.json" in caches
    owners = {json.loads((tmp_path / name).read_text())[0]["source"] for name in caches}
    assert {"train.zip", "train.tar"} <= owners


def test_a_read_only_folder_gets_its_cache_elsewhere(tmp_path):
    data, other = tmp_path / "data", tmp_path / "runs" / "cache"
    data.mkdir()
    make_tar(data / "train.tar.gz", "w:gz")
    data.chmod(0o555)
    try:
        first = table_of(data / "train.tar.gz", fallback_folder=other)
        second = table_of(data / "train.tar.gz", fallback_folder=other)
    finally:
        data.chmod(0o755)
    assert sorted(path.name for path in other.iterdir()) == ["train.cache.json", "train.gzindex"]
    assert len(first) == len(second) == 7
    assert [path.name for path in data.iterdir()] == ["train.tar.gz"]


@pytest.mark.parametrize("damage", ["", "{}", "[1", "[{}, {}]", "\xff"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    path = make_zip(tmp_path / "train.zip")
    table_of(path)
    (tmp_path / "train.cache.json").write_text(damage, encoding="latin-1")
    assert len(table_of(path)) == 7
    assert json.loads((tmp_path / "train.cache.json").read_text())[0]["clips"] == 7


@pytest.mark.parametrize("damage", [b"", b"junk" * 50, None])
def test_a_damaged_gzip_index_is_made_anew(tmp_path, damage):
    path = make_tar(tmp_path / "train.tar.gz", "w:gz")
    expected = [Clips([table_of(path)], sample_rate=16000).read(index) for index in range(7)]
    index = tmp_path / "train.gzindex"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    clips = Clips([table_of(path)], sample_rate=16000)
    assert all(np.array_equal(clips.read(number), expected[number]) for number in range(7))
    assert index.read_bytes() == whole
    index.write_bytes(bytes(len(whole)))  # the same size, and nonsense: read without it
    clips = Clips([table_of(path)], sample_rate=16000)
    assert all(np.array_equal(clips.read(number), expected[number]) for number in range(7))


@pytest.mark.parametrize("change", [{"fingerprint": None}, {"check": [1]}, {"format": "x"}])
def test_a_cache_with_a_strange_header_is_made_anew(tmp_path, change):
    path = make_zip(tmp_path / "train.zip")
    table_of(path)
    cache = tmp_path / "train.cache.json"
    header, columns = json.loads(cache.read_text())
    cache.write_text(f"[{json.dumps(header | change)},\n{json.dumps(columns)}]")
    assert len(table_of(path)) == 7
    columns["samples"] = columns["samples"][:3]
    cache.write_text(f"[{json.dumps(header)},\n{json.dumps(columns)}]")
    assert len(table_of(path)) == 7


def test_processes_give_the_same_table(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "train.zip")
    alone = table_of(path, fallback_folder=tmp_path)
    (tmp_path / "train.cache.json").unlink()
    monkeypatch.setattr(scan_module, "_PARALLEL_FROM_CLIPS", 0)
    monkeypatch.setattr(scan_module, "_CHUNK_CLIPS", 2)
    together = table_of(path)
    assert together.names == alone.names
    assert np.array_equal(together.samples, alone.samples)
    assert np.array_equal(together.offset, alone.offset)
