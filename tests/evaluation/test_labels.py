import json
import unicodedata

import numpy as np
import pytest

from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.dataset.clips import Clips
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.evaluation.labels import phones_at, phones_of, read_labels, spans_of
from tests.support.audio import encode, tone


@pytest.fixture(scope="module")
def clips(corpus):
    return Clips([scan(source) for source in resolve_sources(str(corpus / "test.zip"))], sample_rate=16000)


def test_a_table_is_joined_by_path(corpus, clips):
    labels = read_labels(str(corpus / "labels.tsv"), clips, split="test")
    assert labels.column("speaker") == [clips.path(position).split("/")[0] for position in range(len(clips))]
    assert labels.has("times")
    assert labels.text(0) == labels.rows[0]["words"]


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_every_form_of_table_and_paths_without_their_ending_are_understood(tmp_path, clips, ending):
    names = [clips.path(position).removesuffix(".flac") for position in range(len(clips))]
    rows = [("path", "mood", "split"), *((name, f"m{number}", "test") for number, name in enumerate(names))]
    rows.insert(1, (names[0], "wrong", "train"))  # the other split's clip of that name
    path = tmp_path / f"labels.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]))
    else:
        path.write_text("\n".join({"tsv": "\t", "csv": ","}[ending].join(row) for row in rows))
    assert read_labels(str(path), clips, split="test").column("mood") == [f"m{number}" for number in range(len(clips))]


def test_the_rows_of_the_other_set_do_not_count(tmp_path, clips):
    path = tmp_path / "labels.tsv"
    name = clips.path(0)
    path.write_text(f"path\tmood\tsplit\n{name}\twrong\ttrain\n{clips.path(1)}\tb\tdev\n")
    assert read_labels(str(path), clips, split="test").column("mood")[:2] == ["", "b"]
    path.write_text(f"path\tmood\tsplit\n{name}\ta\tdev\n{name}\tb\tdev\n")
    with pytest.raises(UserError, match="twice, and no column split tells which counts"):
        read_labels(str(path), clips, split="test")
    path.write_text(f"path\tmood\tsplit\n{name}\ta\tdev\n{name}\tb\ttest\n")
    assert read_labels(str(path), clips, split="test").column("mood")[0] == "b"


def test_names_with_dots_are_found_whole(tmp_path):
    for name in ("utt.1.wav", "utt.2.wav", "utt.wav"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(encode(tone(0.3), 16000, "wav"))
    clips = Clips([scan(source) for source in resolve_sources(str(tmp_path / "a"))], sample_rate=16000)
    (tmp_path / "labels.csv").write_text("path,mood\nutt.1,one\nutt.2,two\n")
    labels = read_labels(str(tmp_path / "labels.csv"), clips, split="test")
    found = {clips.path(position): row.get("mood") for position, row in enumerate(labels.rows)}
    assert found["utt.1.wav"] == "one"
    assert found["utt.2.wav"] == "two"


def test_lists_of_a_jsonl_table_are_their_items(tmp_path, clips):
    (tmp_path / "labels.jsonl").write_text(json.dumps({"path": clips.path(0), "phones": ["AA1", "B"], "age": 7}))
    labels = read_labels(str(tmp_path / "labels.jsonl"), clips, split="test")
    assert phones_of(labels.column("phones")[0]) == ["AA", "B"]
    assert labels.column("age")[0] == "7"


def test_what_is_wrong_with_a_table_is_said(tmp_path, corpus, clips):
    def reason(path, content=None):
        if content is not None:
            (tmp_path / path).write_text(content)
        with pytest.raises(UserError) as error:
            read_labels(str(tmp_path / path), clips, split="test")
        return str(error.value)

    assert "no such file" in reason("absent.tsv")
    assert "ends in neither" in reason("labels.txt", "path\n")
    assert "needs a column path" in reason("a.tsv", "name\tspeaker\nx\ty\n")
    assert "needs a column path" in reason("b.tsv", "")
    assert "cannot be read" in reason("c.jsonl", "{")
    assert "cannot be read" in reason("d.jsonl", "3")
    assert "names none of the clips (one is 'S03/S03_000.flac')" in reason("e.tsv", "path\tspeaker\nx.wav\ty\n")
    with pytest.raises(UserError, match=r"no clip has a label 'age' \(labels there: gender, path, phones"):
        read_labels(str(corpus / "labels.tsv"), clips, split="test").column("age")
    with pytest.raises(UserError, match=r"no clip has a label 'age' \(labels there: none\)"):
        read_labels(None, clips, split="test").column("age")


def test_phones_and_their_times_are_read_from_text():
    assert phones_of("W IY0 | K AO1 L") == ["W", "IY", "K", "AO", "L"]
    assert phones_of("t1 x2") == ["t1", "x2"]  # not stress: ARPAbet is in capitals
    spans = spans_of("SIL:0.0-0.1 AH0:0.1-0.25 B:0.3-0.4")
    assert [span.phone for span in spans] == ["SIL", "AH", "B"]
    assert phones_at(spans, np.array([0.05, 0.1, 0.2499, 0.27, 0.35, 0.4])) == ["SIL", "AH", "AH", "", "B", ""]
    assert phones_at([], np.array([0.1])) == [""]
    with pytest.raises(ValueError, match=r"'AH' is not PHONE:start-end"):
        spans_of("AH")
    for wrong in ("A:0.5-0.1", "B:0.2-0.4 A:0-0.2", "A:0-0.3 B:0.2-0.4"):
        with pytest.raises(ValueError, match="ends before it starts, or starts before"):
            spans_of(wrong)


def test_a_frames_time_is_the_middle_of_what_it_sees():
    assert SPEECH.centres(0, 2).tolist() == [200 / 16000, 520 / 16000]
    assert SPEECH.centres(16000, 1).tolist() == [1 + 200 / 16000]


def test_accents_are_the_same_however_they_are_written(tmp_path):
    written, stored = "caf\u00e9.wav", unicodedata.normalize("NFD", "caf\u00e9.wav")
    assert written != stored
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / stored).write_bytes(encode(tone(0.3), 16000, "wav"))
    (folder / "other.wav").write_bytes(encode(tone(0.3), 16000, "wav"))
    clips = Clips([scan(source) for source in resolve_sources(str(folder))], sample_rate=16000)
    (tmp_path / "labels.csv").write_text(f"path,mood\n{written},one\n", encoding="utf-8")
    labels = read_labels(str(tmp_path / "labels.csv"), clips, split="test")
    assert sorted(row.get("mood", "") for row in labels.rows) == ["", "one"]
    assert [clips.path(position) for position in labels.without] == ["other.wav"]
