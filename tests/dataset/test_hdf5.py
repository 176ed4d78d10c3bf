"""The HDF5 file: the same clips as their archive, whatever happens while it is built."""

import json
import multiprocessing
import os
import resource
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import soundfile
import torch

from sjepa.core.errors import UserError
from sjepa.dataset import hdf5_write
from sjepa.dataset.audio import DecodeError
from sjepa.dataset.augment import Augmentation
from sjepa.dataset.clips import Clips
from sjepa.dataset.hdf5 import to_samples, to_waveform
from sjepa.dataset.hdf5_build import Stopped, build
from sjepa.dataset.hdf5_write import FileContent, Writer, is_current, progress_of
from sjepa.dataset.loader import Batching, Loader, Readers, WindowDataset
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops
from tests.support.audio import encode, tone

HALF_STEP = 0.5 / 32768


def clips_of(path, depth=True):
    return Clips([scan(source, depth=depth) for source in resolve_sources(str(path))], sample_rate=16000)


def silent_build(content, target, **options):
    return build(content, target, num_workers=0, progress=lambda items, **_: iter(items), **options)


def assert_same_content(first, second):
    """All samples, columns and texts; the library leaves gaps between them as they come."""
    with h5py.File(first) as one, h5py.File(second) as other:
        assert set(one) == set(other)
        assert dict(one.attrs) == dict(other.attrs)
        for name in one:
            assert np.array_equal(one[name][()], other[name][()]), name


@pytest.fixture(scope="module")
def mixed(corpus, tmp_path_factory):
    """Speech at 16 kHz, and clips of other rates, channels and formats, in one folder."""
    folder = tmp_path_factory.mktemp("mixed")
    with zipfile.ZipFile(corpus / "train.zip") as archive:
        archive.extractall(folder / "clips")
    for rate, channels, ending in ((44100, 2, "flac"), (8000, 1, "wav"), (22050, 1, "ogg"), (48000, 8, "wav")):
        (folder / f"clips/{rate}.{ending}").write_bytes(encode(tone(2.0, rate, channels), rate, ending))
    return folder / "clips"


@pytest.fixture(scope="module")
def stored(mixed, tmp_path_factory):
    target = tmp_path_factory.mktemp("h5") / "train.h5"
    silent_build(FileContent(clips_of(mixed), []), target)
    return target


def batches(clips, *, epoch=0, augmentation=None, seconds=0.7, **options):
    dataset = WindowDataset(
        clips, crops(clips.length_N, round(seconds * 16000)), seed=3, fewest_samples=720, augmentation=augmentation
    )
    return list(Loader(dataset, Batching(4), Readers(**options)).epoch(epoch, augment=augmentation is not None))


def test_batches_are_those_of_the_archive_to_a_rounding(mixed, stored):
    """Crops of resampled clips too, and with another voice mixed in: it comes from the file as
    well."""
    augmentation = Augmentation(16000, 720, 0.3, 0.3, (-5.0, 20.0), (-5.0, 5.0))
    for made in (None, augmentation):
        for epoch in (0, 1):
            expected, got = (batches(clips_of(path), epoch=epoch, augmentation=made) for path in (mixed, stored))
            assert len(expected) == len(got) > 4
            for first, second in zip(expected, got, strict=True):
                assert torch.equal(first.clip_id_B, second.clip_id_B)
                assert first.num_samples == second.num_samples
                assert (first.clean_BS - second.clean_BS).abs().max() <= HALF_STEP * 1.01
                # a mixed-in voice has a rounding of its own, and a gain
                assert (first.heard_BS - second.heard_BS).abs().max() <= HALF_STEP * (1.01 if made is None else 20)


def test_sixteen_bit_recordings_come_back_exactly(corpus, tmp_path):
    clips = clips_of(corpus / "train.zip")
    silent_build(FileContent(clips, []), tmp_path / "a.h5")
    again = clips_of(tmp_path / "a.h5")
    assert again.hours == clips.hours
    for position in range(len(clips)):
        assert np.array_equal(again.read(position), clips.read(position))
        assert again.name(position).endswith(clips.name(position))


def test_float32_keeps_what_is_beyond_full_scale_and_int16_counts_it(tmp_path):
    soundfile.write(tmp_path / "loud.wav", 4 * tone(1.0), 16000, subtype="FLOAT")
    clips = clips_of(tmp_path)
    beyond = int((np.abs(clips.read(0)) > 1).sum())
    assert 1000 < beyond < 16000
    assert silent_build(FileContent(clips, [], "float32"), tmp_path / "f.h5").clipped == 0
    assert np.array_equal(clips_of(tmp_path / "f.h5").read(0), clips.read(0))
    assert silent_build(FileContent(clips, []), tmp_path / "i.h5").clipped == beyond
    assert clips_of(tmp_path / "i.h5").read(0).max() == 32767 / 32768


def test_rounding_is_to_the_nearest_sample():
    values = np.array([-1, -0.99999, -0.4 / 32768, 0, 0.6 / 32768, 0.99999, 1, 2], np.float32)
    stored = to_samples(values, np.dtype("<i2"))
    assert stored.tolist() == [-32768, -32768, 0, 0, 1, 32767, 32767, 32767]
    assert np.array_equal(to_waveform(stored), stored / np.float32(32768))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["h5", "folder", "zip", "targz"])
def test_any_number_of_workers_gives_the_same_bytes(corpus, mixed, stored, tmp_path_factory, kind, method):
    if kind == "targz":
        path = tmp_path_factory.mktemp("packed") / "a.tar.gz"
        import tarfile

        with tarfile.open(path, "w:gz") as archive:
            archive.add(mixed, "clips")
    else:
        path = {"h5": stored, "folder": mixed, "zip": corpus / "train.zip"}[kind]
    clips = clips_of(path)
    clips.read(0)  # a handle is open before the workers start
    expected = batches(clips)
    for workers in (1, 4) if method == "fork" or kind == "h5" else (1,):
        got = batches(clips, num_workers=workers, start_method=method)
        assert [batch.names for batch in got] == [batch.names for batch in expected]
        assert all(torch.equal(a.clean_BS, b.clean_BS) for a, b in zip(got, expected, strict=True))


def test_the_file_is_hardly_larger_than_its_samples_and_others_can_read_it(stored, mixed):
    clips = clips_of(mixed)
    with h5py.File(stored) as file:
        samples, offset, length = file["samples"], file["offset"][:], file["length"][:]
        assert (samples.chunks, samples.dtype, samples.shape) == (None, np.int16, (int(clips.length_N.sum()),))
        third = samples[offset[2] : offset[2] + length[2]] / 32768
        names = file["name"].asstr()[:]
    assert np.abs(third - clips.read(2)).max() <= HALF_STEP
    assert names[2] == clips.name(2)


def test_copies_are_augmented_and_belong_to_their_clip(mixed, tmp_path):
    clips = clips_of(mixed)
    augmentation = Augmentation(16000, 720, 0.5, 0.5, (0.0, 5.0), (0.0, 5.0))
    content = FileContent(clips, [], copies=2, augmentation=augmentation, tile_samples=8000)
    silent_build(content, tmp_path / "a.h5")
    again = clips_of(tmp_path / "a.h5")
    assert len(again) == len(clips)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["augmented"][:].reshape(3, -1).tolist() == [[0] * len(clips), [1] * len(clips), [1] * len(clips)]
        assert np.array_equal(file["source"][:], np.tile(np.arange(len(clips)), 3))
    for position in range(len(clips)):
        assert again.copies(position) == 2
        clean, one, two = again.read(position), again.read(position, copy=0), again.read(position, copy=1)
        assert len(clean) == len(one) == len(two)
        assert not np.array_equal(clean, one)
        assert not np.array_equal(one, two)
        assert np.array_equal(again.read(position, start=500, length=100, copy=1), two[500:600])
    # the copy is heard as often as augmentation is asked for, at the place of the clean window
    heard = batches(again, augmentation=Augmentation(16000, 720, 0.25, 0.25, (0.0, 5.0), (0.0, 5.0)))
    changed = sum(not torch.equal(a, b) for batch in heard for a, b in zip(batch.clean_BS, batch.heard_BS, strict=True))
    assert 0.2 * len(clips) < changed < 0.8 * len(clips)  # 22 draws at 0.5: three deviations are 7
    expected = batches(clips)
    assert all(
        torch.allclose(a.clean_BS, b.clean_BS, atol=HALF_STEP * 1.01) for a, b in zip(heard, expected, strict=True)
    )


def test_copies_depend_on_nothing_but_their_clip(mixed, tmp_path):
    clips, made = clips_of(mixed), Augmentation(16000, 720, 0.5, 0.5, (0.0, 5.0), (0.0, 5.0))
    content = FileContent(clips, [], copies=1, augmentation=made, tile_samples=8000)
    silent_build(content, tmp_path / "a.h5")
    build(content, tmp_path / "b.h5", num_workers=2, progress=lambda items, **_: iter(items))
    assert_same_content(tmp_path / "a.h5", tmp_path / "b.h5")


def stopped_after(count):
    calls = iter(range(1000))
    return lambda: next(calls) >= count


def test_a_stopped_build_goes_on(mixed, tmp_path, monkeypatch):
    """Ends with the same content as one that was never stopped, and decodes nothing twice."""
    content, target = FileContent(clips_of(mixed), [("x.wav", "empty file")]), tmp_path / "a.h5"
    silent_build(content, tmp_path / "whole.h5")
    with pytest.raises(Stopped) as stop:
        silent_build(content, target, stop=stopped_after(8))
    assert stop.value.clips == 9 == progress_of(content, target)
    assert not target.exists()
    read: list[int] = []
    original = Clips.read
    monkeypatch.setattr(
        Clips, "read", lambda self, position, **window: read.append(position) or original(self, position, **window)
    )
    silent_build(content, target)
    assert read == list(range(9, len(content.clips)))
    assert_same_content(target, tmp_path / "whole.h5")
    assert is_current(content, target)
    assert not list(tmp_path.glob("*.partial"))


def test_another_plan_starts_anew(mixed, tmp_path):
    content, target = FileContent(clips_of(mixed), []), tmp_path / "a.h5"
    with pytest.raises(Stopped):
        silent_build(content, target, stop=stopped_after(8))
    other = FileContent(clips_of(mixed), [], "float32")
    assert progress_of(other, target) == 0
    silent_build(other, target)
    assert is_current(other, target)
    assert not is_current(content, target)


def slow_build(folder, target):
    original = Clips.read

    def slow(self, position, **window):
        time.sleep(0.01)
        return original(self, position, **window)

    Clips.read = slow
    hdf5_write._SECONDS_BETWEEN_MARKS = 0.0
    silent_build(FileContent(clips_of(folder), []), target)


def test_a_killed_build_goes_on(mixed, tmp_path):
    content, target = FileContent(clips_of(mixed), []), tmp_path / "a.h5"
    silent_build(content, tmp_path / "whole.h5")
    process = multiprocessing.get_context("fork").Process(target=slow_build, args=(mixed, target))
    process.start()
    deadline = time.monotonic() + 60
    while progress_of(content, target) < 3:
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 3 <= progress_of(content, target) < len(content.clips)
    silent_build(content, target)
    assert_same_content(target, tmp_path / "whole.h5")


def test_two_builds_of_one_file_are_refused(mixed, tmp_path):
    content, target = FileContent(clips_of(mixed), []), tmp_path / "a.h5"
    process = multiprocessing.get_context("fork").Process(target=slow_build, args=(mixed, target))
    process.start()
    while progress_of(content, target) < 1:
        time.sleep(0.001)
    with pytest.raises(UserError, match="another process is building it"):
        silent_build(content, target)
    process.join()
    assert process.exitcode == 0
    assert is_current(content, target)


def limited_build(folder, target):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        silent_build(FileContent(clips_of(folder), []), target)
    except UserError as error:
        os._exit(3 if "cannot be written" in str(error) else 4)


def test_no_room_is_told_before_anything_is_decoded(mixed, tmp_path):
    target = tmp_path / "a.h5"
    process = multiprocessing.get_context("fork").Process(target=limited_build, args=(mixed, target))
    process.start()
    process.join()
    assert process.exitcode == 3
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named_by_clip(stored, tmp_path):
    target = tmp_path / "a.h5"
    content = bytearray(stored.read_bytes())
    with h5py.File(stored) as file:
        place = file["samples"].id.get_offset() + 2 * int(file["offset"][5] + 100)
        name = file["name"].asstr()[5]
    content[place] ^= 1
    target.write_bytes(content)
    clips = clips_of(target)
    with pytest.raises(DecodeError, match="checksum"):
        clips.read(5)
    clips.read(4)
    (failure,) = [failure for batch in batches(clips, seconds=20) for failure in batch.failures]
    assert name in failure.name
    checked = scan(resolve_sources(str(target))[0], depth="full")
    assert checked.dropped == [(name, "its stored samples are damaged (checksum)")]
    assert checked.samples[5] == 0


@pytest.mark.parametrize("keep", [0, 100, 3000, -1000])
def test_a_file_cut_off_is_refused(stored, tmp_path, keep):
    (tmp_path / "a.h5").write_bytes(stored.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.h5: cannot be read as HDF5 of buildh5ds"):
        clips_of(tmp_path / "a.h5")


def test_damaged_columns_are_refused(stored, tmp_path):
    def damaged(name, change):
        (tmp_path / "a.h5").write_bytes(stored.read_bytes())
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file[name][...] = change(file[name][()])
        with pytest.raises(UserError, match="cannot be read as HDF5 of buildh5ds"):
            clips_of(tmp_path / "a.h5")

    damaged("sources", lambda text: text.replace(b"fingerprint", b"fingerprinx"))
    damaged("sources", lambda text: text.replace(b'"kind"', b'"kine"'))
    damaged("sources", lambda text: b"[1]")
    damaged("length", lambda values: np.where(np.arange(len(values)) == 2, 1 << 40, values))
    damaged("length", lambda values: values - values[0] - 1)
    damaged("offset", lambda values: values - 1)


def test_other_hdf5_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not one that buildh5ds made"):
        clips_of(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_text("no")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        clips_of(tmp_path / "b.h5")


def test_a_clip_that_cannot_be_decoded_is_left_out_and_told(mixed, tmp_path):
    """Found while building: the scan read its two ends alone."""
    soundfile.write(tmp_path / "long.wav", tone(4.0), 16000)
    content = bytearray(encode(tone(4.0), 16000, "flac"))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    (tmp_path / "broken.flac").write_bytes(content)
    clips = clips_of(tmp_path, depth="header")
    assert len(clips) == 2
    built = silent_build(FileContent(clips, [("z.wav", "no samples")]), tmp_path / "a.h5")
    assert [failure.name for failure in built.problems] == [clips.name(0)]
    again = clips_of(tmp_path / "a.h5")
    assert again.length_N.tolist() == [0, 64000]
    assert [name for name, _ in again.dropped] == ["a.h5/z.wav", f"a.h5/{clips.name(0)}"]
    assert again.id_N.tolist() == [0, 1]


@pytest.mark.slow
def test_threads_read_what_one_reads(stored, corpus, tmp_path):
    """Each has file positions of its own, in HDF5 as in archives."""
    for path in (stored, corpus / "train.zip"):
        clips = clips_of(path)
        expected = [clips.read(position) for position in range(18)]
        positions = np.random.default_rng(0).integers(18, size=3000).tolist()
        with ThreadPoolExecutor(4) as pool:
            for position, wave in zip(positions, pool.map(clips.read, positions), strict=True):
                assert np.array_equal(wave, expected[position])


def test_damage_in_a_copy_is_found_by_a_full_check(mixed, tmp_path):
    made = Augmentation(16000, 720, 0.5, 0.5, (0.0, 5.0), (0.0, 5.0))
    silent_build(FileContent(clips_of(mixed), [], copies=1, augmentation=made), tmp_path / "a.h5")
    content = bytearray((tmp_path / "a.h5").read_bytes())
    with h5py.File(tmp_path / "a.h5") as file:
        rows = len(file["name"])
        place = file["samples"].id.get_offset() + 2 * int(file["offset"][rows + 3])
    content[place] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    assert len(scan(resolve_sources(str(tmp_path / "a.h5"))[0], depth="full").dropped) == 1


def test_a_source_that_others_may_not_see_is_not_asked_for(mixed, tmp_path, monkeypatch):
    silent_build(FileContent(clips_of(mixed), []), tmp_path / "a.h5")

    def refused(source):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sjepa.dataset.fingerprint.of_file", refused)
    assert clips_of(tmp_path / "a.h5").remarks == []


def test_labels_come_along(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    soundfile.write(tmp_path / "b.wav", tone(2.0), 16000)
    lines = [{"path": "a.wav", "speaker": "s1"}, {"path": "b.wav", "offset": 0.5, "duration": 1.0, "text": "é"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    clips = clips_of(tmp_path / "m.jsonl")
    silent_build(FileContent(clips, []), tmp_path / "a.h5")
    again = clips_of(tmp_path / "a.h5")
    assert [again.labels(position) for position in (0, 1)] == [clips.labels(position) for position in (0, 1)]
    assert np.abs(again.read(1) - clips.read(1)).max() <= HALF_STEP


def test_a_source_that_changed_is_told(mixed, tmp_path):
    import shutil

    shutil.copytree(mixed, tmp_path / "clips")
    silent_build(FileContent(clips_of(tmp_path / "clips"), []), tmp_path / "a.h5")
    assert clips_of(tmp_path / "a.h5").remarks == []
    soundfile.write(tmp_path / "clips/new.wav", tone(1.0), 16000)
    (remark,) = clips_of(tmp_path / "a.h5").remarks
    assert remark.startswith(f"{tmp_path / 'a.h5'}: older than {tmp_path / 'clips'}")
    assert clips_of(tmp_path / "a.h5", depth=False).remarks == []
    shutil.rmtree(tmp_path / "clips")
    assert clips_of(tmp_path / "a.h5").remarks == []


def test_the_disk_filling_up_later_keeps_what_is_stored(mixed, tmp_path, monkeypatch):
    content, target = FileContent(clips_of(mixed), []), tmp_path / "a.h5"
    original, calls = Writer.piece, iter(range(1000))

    def fails(self, *arguments):
        if next(calls) == 8:
            self.mark()
            raise OSError(28, "No space left on device")
        original(self, *arguments)

    monkeypatch.setattr(Writer, "piece", fails)
    with pytest.raises(UserError, match=r"a\.h5: cannot be written \(No space left on device\); run it again to go on"):
        silent_build(content, target)
    assert progress_of(content, target) == 8
    silent_build(content, target)
    assert is_current(content, target)


def test_a_part_of_a_corpus_keeps_its_numbers(mixed, tmp_path):
    """So that every draw about a clip is the same from the file as from the archive."""
    clips = clips_of(mixed)
    part = clips.subset(np.array([3, 8, 9, 20]))
    silent_build(FileContent(part, []), tmp_path / "a.h5")
    again = clips_of(tmp_path / "a.h5")
    assert np.flatnonzero(again.length_N).tolist() == [3, 8, 9, 20]
    assert np.abs(again.read(8) - clips.read(8)).max() <= HALF_STEP
