"""Every container gives the same clips; what cannot be a clip is dropped with its reason."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sjepa.core.errors import UserError
from sjepa.dataset.clips import Clips
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from tests.support.archives import NAMES, audio, make_folder, make_tar, make_zip
from tests.support.audio import encode, tone
from tests.support.odd_files import written


def cut(path, start=0.0, duration=0.5, whole=0.5, **more):
    """A line of a lhotse cut manifest, as `CutSet.to_file` writes it."""
    recording = {"id": path, "sources": [{"type": "file", "channels": [0], "source": path}], "sampling_rate": 16000,
                 "num_samples": 8000, "duration": whole, "channel_ids": [0]}  # fmt: skip
    supervision = {
        "id": path,
        "recording_id": path,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "text": "one two",
        "speaker": "ann",
    }
    return {"id": f"{path}-0", "start": start, "duration": duration, "channel": 0, "supervisions": [supervision],
            "recording": recording, "type": "MonoCut", **more}  # fmt: skip


@pytest.fixture(params=["folder", "zip", "deflated zip", "tar", "tar.gz", "tgz", "jsonl", "tsv", "scp", "cuts"])
def container(request, tmp_path):
    kind = request.param
    if kind in ("folder", "jsonl", "tsv", "scp", "cuts"):
        folder = make_folder(tmp_path / "data")
        if kind == "jsonl":
            lines = [json.dumps({"audio_filepath": f"data/{name}", "speaker": name[8]}) for name in NAMES]
            (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n\n")
            return tmp_path / "list.jsonl"
        if kind == "tsv":
            (tmp_path / "list.tsv").write_text("data\n" + "".join(f"{name}\t5000\n" for name in NAMES))
            return tmp_path / "list.tsv"
        if kind == "scp":
            (tmp_path / "wav.scp").write_text("".join(f"u{number} data/{name}\n" for number, name in enumerate(NAMES)))
            return tmp_path / "wav.scp"
        if kind == "cuts":
            lines = [json.dumps(cut(f"data/{name}")) for name in NAMES]
            (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
            return tmp_path / "cuts.jsonl.gz"
        return folder
    if "zip" in kind:
        return make_zip(tmp_path / "data.zip", zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED)
    return make_tar(tmp_path / f"data.{kind}", "w" if kind == "tar" else "w:gz")


def clips_of(*paths):
    return Clips([scan(source) for source in resolve_sources([str(path) for path in paths])], sample_rate=16000)


def test_every_container_holds_the_same_clips(container):
    clips = clips_of(container)
    assert len(clips) == 7
    assert clips.dropped == []
    by_name = {clips.name(index).rsplit("/", 1)[-1]: index for index in range(7)}
    for number, name in enumerate(NAMES):
        read = clips.read(by_name[Path(name).name])
        assert np.abs(read - tone(0.3 + 0.1 * number, seed=number)[:, 0]).max() < 1e-4  # 16-bit rounding


def test_windows_are_slices_of_the_whole(container):
    clips = clips_of(container)
    whole = clips.read(3)
    assert np.array_equal(clips.read(3, start=1000, length=1500), whole[1000:2500])


def test_manifest_fields_are_kept_as_labels(tmp_path):
    make_folder(tmp_path)
    lines = [
        json.dumps({"wav_path": NAMES[0], "speaker": "a", "age": 7}),
        json.dumps({"path": NAMES[1], "speaker": "b"}),
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    clips = clips_of(tmp_path / "list.jsonl")
    assert [clips.labels(index) for index in range(2)] == [{"speaker": "a", "age": 7}, {"speaker": "b", "age": None}]


def test_manifest_segments_are_cut_out_of_the_file(tmp_path):
    make_folder(tmp_path)
    lines = [
        {"path": NAMES[6], "offset": 0.25, "duration": 0.5},
        {"path": NAMES[6], "offset": 0.5},
        {"path": NAMES[6], "offset": 9},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    clips = clips_of(tmp_path / "list.jsonl")
    files = clips_of(tmp_path)
    whole = files.read(next(index for index in range(7) if files.name(index).endswith(NAMES[6])))
    assert np.array_equal(clips.read(0), whole[4000:12000])
    assert np.array_equal(clips.read(1), whole[8000:])
    assert "after the end" in clips.dropped[0][1]


def test_a_manifest_means_the_same_from_any_folder_and_after_a_move(tmp_path, monkeypatch):
    make_folder(tmp_path / "here" / "data")
    (tmp_path / "here" / "list.jsonl").write_text(json.dumps({"path": f"data/{NAMES[0]}"}))
    (tmp_path / "here" / "list.tsv").write_text(f"data\n{NAMES[0]}\t5000\n")
    monkeypatch.chdir(tmp_path)
    expected = clips_of("here/list.jsonl").read(0)
    clips_of("here/list.tsv")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    for name in ("list.jsonl", "list.tsv"):
        assert np.array_equal(clips_of(name).read(0), expected)


def test_globs_and_lists_are_one_dataset_in_a_fixed_order(tmp_path):
    for shard in ("b", "a"):
        make_tar(tmp_path / f"{shard}.tar", "w")
    (tmp_path / "a.txt").touch()
    make_zip(tmp_path / "c.zip")
    clips = clips_of(tmp_path / "*.tar", tmp_path / "c.zip", tmp_path / "a.tar")  # named twice, taken once
    assert len(clips) == 21
    assert [clips.name(index).split("/")[0] for index in (0, 7, 14)] == ["a.tar", "b.tar", "c.zip"]


def test_entries_that_cannot_be_clips_are_dropped_with_their_reason(tmp_path):
    path = tmp_path / "data.tar"
    with tarfile.open(make_tar(path, "w"), "a") as archive:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, NAMES[0]
        archive.addfile(link)
        for name, content in {
            "empty.wav": b"",
            "text.wav": b"this is no audio " * 50,
            "cut.flac": encode(tone(2), 16000, "flac")[:9000],
            "nan.wav": float_wav(np.full(8000, np.nan, np.float32)),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    clips = clips_of(path)
    assert len(clips) == 7
    reasons = {name.split("/")[-1]: reason for name, reason in clips.dropped}
    assert set(reasons) == {"link.wav", "empty.wav", "text.wav", "cut.flac", "nan.wav"}
    assert reasons["link.wav"] == "link inside the archive"
    assert reasons["nan.wav"] == "samples that are not finite numbers"
    assert all(reasons.values())


def test_strange_files_and_lines_are_dropped_and_the_rest_is_used(tmp_path):
    (tmp_path / "good.wav").write_bytes(audio(0))
    (tmp_path / "none.mp3").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.wav")
    lines = [{"path": "good.wav"}, {"path": "pipe.wav"}, {"path": "none.mp3"}, {"path": "gone.wav"}, {"audio": "x"}, {"path": 3}, ["good.wav"],
             {"path": "good.wav", "offset": 1e308}, {"path": "good.wav", "offset": 10**400}, {"path": "good.wav", "offset": -1},
             {"path": "good.wav", "offset": 0, "duration": 0}, {"path": "odd\u2028name.wav"}]  # fmt: skip
    (tmp_path / "list.jsonl").write_text(
        "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\nnonsense"
    )
    clips = clips_of(tmp_path / "list.jsonl")
    assert len(clips) == 1
    assert len(clips.dropped) == 12
    reasons = dict(clips.dropped)
    assert reasons["list.jsonl/pipe.wav"] == "not a regular file"
    assert reasons["list.jsonl/none.mp3"] == "empty file"
    assert len(clips_of(tmp_path)) == 1


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_damaged_zip_entries_are_dropped(tmp_path, compression):
    path = make_zip(tmp_path / "data.zip", compression)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(NAMES[2])
    data = bytearray(path.read_bytes())
    start = entry.header_offset if compression == zipfile.ZIP_STORED else entry.header_offset + 30 + len(NAMES[2]) + 4
    data[start : start + 200] = bytes(200)
    path.write_bytes(bytes(data))
    clips = clips_of(path)
    assert len(clips) == 6
    assert clips.dropped[0][0].endswith(NAMES[2])


def test_encrypted_and_linked_zip_entries_are_dropped(tmp_path):
    path = make_zip(tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    entry = data.rindex(NAMES[2].encode()) - 46  # central directory header of that name
    data[entry + 8] |= 1
    entry = data.rindex(NAMES[3].encode()) - 46
    data[entry + 38 : entry + 42] = (0o120777 << 16).to_bytes(4, "little")
    data[entry + 5] = 3  # made on Unix
    path.write_bytes(bytes(data))
    clips = clips_of(path)
    assert len(clips) == 5
    assert sorted(reason for _, reason in clips.dropped) == ["encrypted", "symbolic link"]


def test_broken_links_are_dropped_and_strange_names_read(tmp_path):
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    strange = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    try:
        Path(os.fsdecode(strange)).write_bytes(audio(0))
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    (tmp_path / "loop").symlink_to(tmp_path)
    clips = clips_of(tmp_path)
    assert len(clips) == 1
    assert len(clips.read(0)) == 4800
    assert clips.name(0).isprintable()
    assert clips.dropped == [(f"{tmp_path.name}/gone.wav", "link to nothing")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.zip", None, "no such file or folder"),
        ("*.nothing", None, "no folder, archive or manifest matches"),
        ("data.rar", b"x", "neither a folder nor a file ending in"),
        ("data.zip", b"this is no archive", "cannot be read as zip"),
        ("data.tar", b"this is no archive" * 99, "cannot be read as tar"),
        ("data.tar.gz", b"this is no archive" * 99, "cannot be read as targz"),
        ("data.tsv", b"nowhere\na.wav\t5\n", "not the folder that the paths below it start from"),
    ],
)
def test_sources_that_are_none_are_the_users_to_mend(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        [scan(source) for source in resolve_sources(str(tmp_path / name))]


def float_wav(samples):
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_what_is_passed_over_is_counted_and_odd_recordings_are_remarked_on(container, tmp_path):
    loud = np.clip(32767 * tone(1.0)[:, 0], -32768, 32767)
    opposite = np.concatenate([tone(1.0), -tone(1.0)], axis=1)
    files = {
        "fine.wav": encode(tone(1.0), 16000, "wav"),
        "loud.wav": written(loud, "WAV", "FLOAT"),
        "loud as well.wav": written(loud, "WAV", "FLOAT"),
        "opposite.wav": encode(opposite, 16000, "wav"),
        "line\nbreak\t.flac": encode(tone(1.0), 16000, "flac"),
        "a.xyz": b"x", "b.xyz": b"x", "c.zip": b"x", "noending": b"x", "labels.tsv": b"x", "._fine.wav": b"x",
    }  # fmt: skip
    path = tmp_path / "in" / {"folder": "clips", "zip": "clips.zip", "tar": "clips.tar"}[container]
    path.parent.mkdir()
    if container == "folder":
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
    elif container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for _ in range(2):  # from the cache too
        table = scan(resolve_sources(str(path))[0])
        assert len(table) == 5
        passed, *odd = sorted(table.remarks, key=lambda text: "skipped" not in text)
        assert passed.startswith(f"{path.name}: skipped by file ending: ")
        assert "2 .xyz" in passed
        assert "1 .zip" in passed
        assert "1 without ending" in passed
        assert any("values far above full scale" in text and ": 2 of 5 clips" in text for text in odd)
        assert any("channels that cancel" in text and "1 of 5 clips, first opposite.wav" in text for text in odd)
        assert len(odd) == 2
    names = Clips([table], sample_rate=16000)
    assert any(names.name(row).endswith("line\\nbreak\\t.flac") for row in range(len(names)))


def test_a_lhotse_cut_is_a_segment_with_its_labels(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.arange(32000) / 40000, 16000)
    mixed = {"id": "m", "tracks": [], "type": "MixedCut"}
    other = cut("long.wav")
    other["recording"]["sources"][0]["type"] = "url"
    stereo = cut("long.wav")
    stereo["recording"]["sources"][0]["channels"] = [0, 1]
    plain = {"path": "long.wav", "recording": "session 1", "sources": "two"}  # labels of a manifest of ours
    lines = [cut("long.wav", 0.5, 1.0, 2.0), cut("long.wav", 0.0, 2.0, 2.0), mixed, other, stereo, plain]
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    clips = clips_of(tmp_path / "cuts.jsonl")
    assert clips.length_N.tolist() == [16000, 32000, 32000]
    assert clips.read(0)[0] == pytest.approx(8000 / 40000, abs=1e-4)
    labels = {"id": "long.wav-0", "speaker": "ann", "text": "one two"}
    assert {name: clips.labels(0)[name] for name in labels} == labels
    assert clips.labels(2)["recording"] == "session 1"
    assert [name for name, _ in clips.dropped] == ["cuts.jsonl/line 3", "cuts.jsonl/line 4", "cuts.jsonl/line 5"]
    assert "one channel of several" in dict(clips.dropped)["cuts.jsonl/line 5"]


def test_a_kaldi_folder_with_segments_speakers_and_texts(tmp_path):
    soundfile.write(tmp_path / "long one.wav", np.arange(32000) / 40000, 16000)
    (tmp_path / "wav.scp").write_text("r1 long one.wav\nr2 sox in.wav -t wav - |\nr3 raw.ark:17\n")
    (tmp_path / "segments").write_text("u1 r1 0.5 1.5 0\nu2 r1 1.0 -1\nu3 r9 0 1\nu4 r1 2 1\nu5 r2 0 1\nu6 r3 0 1\n")
    (tmp_path / "utt2spk").write_text("u1 ann\nu2 bob\n")
    (tmp_path / "text").write_text("u1 one two\n")
    clips = clips_of(tmp_path / "wav.scp")
    assert clips.length_N.tolist() == [16000, 16000]
    assert clips.read(0)[0] == pytest.approx(8000 / 40000, abs=1e-4)
    assert clips.labels(0) == {"speaker": "ann", "text": "one two"}
    assert clips.labels(1)["speaker"] == "bob"
    reasons = dict(clips.dropped)
    assert "a command" in reasons["wav.scp/u5"]
    assert "not an audio file" in reasons["wav.scp/u6"]
    assert "r9 is not in wav.scp" in reasons["wav.scp/u3"]
    assert "before its start" in reasons["wav.scp/u4"]
    (tmp_path / "segments").write_text("u1 r1 half 1.5\n")
    with pytest.raises(UserError, match="segments: line 1 is not: utterance recording start end"):
        clips_of(tmp_path / "wav.scp")
    (tmp_path / "segments").write_text("u1 r1 0 1 1\n")
    with pytest.raises(UserError, match="segments: line 1: channel 1; write it to a file of its own"):
        clips_of(tmp_path / "wav.scp")
    (tmp_path / "segments").unlink()
    reasons = dict(clips_of(tmp_path / "wav.scp").dropped)
    assert "a command" in reasons["wav.scp/r2"]


@pytest.mark.parametrize("name", ["lists/wav.scp", "lists/cuts.jsonl", "lists/train.json"])
def test_paths_from_the_working_directory_are_found_where_none_is_beside_the_list(tmp_path, monkeypatch, name):
    """As Kaldi, lhotse and NeMo write them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "lists").mkdir()
    soundfile.write(tmp_path / "data/one.wav", np.arange(16000) / 40000, 16000)
    lines = {"wav.scp": "u data/one.wav", "cuts.jsonl": json.dumps(cut("data/one.wav", 0.0, 1.0, 1.0)),
             "train.json": json.dumps({"audio_filepath": "data/one.wav", "duration": 1.0, "text": "a"})}  # fmt: skip
    (tmp_path / name).write_text(lines[Path(name).name] + "\n")
    monkeypatch.chdir(tmp_path)
    clips = clips_of(tmp_path / name)
    monkeypatch.chdir("/")
    assert clips.read(0)[8000] == pytest.approx(0.2, abs=1e-4)


def test_a_damaged_compressed_list_is_one_line(tmp_path):
    content = bytearray(gzip.compress(b'{"path": "a.wav"}\n' * 200))
    content[20:40] = bytes(20)
    (tmp_path / "cuts.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"cuts.jsonl.gz: cannot be read as jsonl"):
        clips_of(tmp_path / "cuts.jsonl.gz")
