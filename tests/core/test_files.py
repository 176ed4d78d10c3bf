import os

import pytest

from sjepa.core.files import atomic_path, is_writable_folder, printable, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError), atomic_path(target) as temporary:
        temporary.write_text("half of the n\udcff", encoding="utf-8")
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["file.txt"]


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_marked_read_only_is_not_written_to(tmp_path):
    assert is_writable_folder(tmp_path)
    tmp_path.chmod(0o555)
    assert not is_writable_folder(tmp_path)
    tmp_path.chmod(0o755)


def test_undecodable_names_can_be_printed():
    assert printable(b"caf\xe9.wav".decode("utf-8", "surrogateescape")).isprintable()


def test_names_that_would_break_a_table_are_escaped():
    assert printable("a\tb\nc\rd\u2028e.wav") == "a\\tb\\nc\\rd\\u2028e.wav"
    assert printable("日本\u3000語 é.wav") == "日本\u3000語 é.wav"
