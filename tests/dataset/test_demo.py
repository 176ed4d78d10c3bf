import csv
import io
import itertools
import zipfile

import numpy as np
import soundfile

from sjepa.dataset.demo import LEXICON, PHONES, main, speaker, write_corpus


def rows(folder):
    with (folder / "labels.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_corpus_is_a_function_of_its_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_corpus(tmp_path / name, speakers=3, clips=2, seed=seed)
    contents = {
        name: [(tmp_path / name / file).read_bytes() for file in ("train.zip", "test.zip", "labels.tsv")]
        for name in "abc"
    }
    assert contents["a"] == contents["b"] != contents["c"]


def test_labels_describe_the_audio(corpus):
    table = rows(corpus)
    assert len(table) == 24
    speakers = {split: {row["speaker"] for row in table if row["split"] == split} for split in ("train", "test")}
    assert not speakers["train"] & speakers["test"]
    for split in ("train", "test"):
        with zipfile.ZipFile(corpus / f"{split}.zip") as archive:
            for row in (row for row in table if row["split"] == split):
                audio, rate = soundfile.read(io.BytesIO(archive.read(row["path"])))
                assert rate == 16000
                assert abs(len(audio) / rate - float(row["seconds"])) < 1e-3
                assert 0.05 < np.abs(audio).max() < 1.0
                times = [item.partition(":")[::2] for item in row["times"].split()]
                spoken = [name for name, _ in times if name != "SIL"]
                assert spoken == row["phones"].replace(" | ", " ").split()
                bounds = [tuple(map(float, span.split("-"))) for _, span in times]
                assert bounds[0][0] == 0
                assert abs(bounds[-1][1] - float(row["seconds"])) < 2e-3
                assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))


def test_lexicon_uses_every_phone():
    used = {phone for word in LEXICON.values() for phone in word.split()}
    assert used == set(PHONES)
    assert len(PHONES) >= 25


def test_speakers_differ():
    voices = [speaker(number, 0) for number in range(12)]
    assert len({round(voice.pitch_hz) for voice in voices}) >= 10
    assert {voice.gender for voice in voices} == {"m", "f"}


def test_phones_sound_different(corpus):
    """Nearest-class-mean on log spectra, other speakers: far above chance, yet far from perfect."""
    frames, names, splits = [], [], []
    for row in rows(corpus):
        with zipfile.ZipFile(corpus / f"{row['split']}.zip") as archive:
            audio, _ = soundfile.read(io.BytesIO(archive.read(row["path"])))
        for item in row["times"].split():
            name, span = item.split(":")
            middle = int(sum(map(float, span.split("-"))) / 2 * 16000)
            window = audio[max(0, middle - 200) : max(0, middle - 200) + 400]
            if len(window) == 400:
                spectrum = np.log(np.abs(np.fft.rfft(window * np.hanning(400))).reshape(-1, 3).mean(1) + 1e-4)
                frames.append(spectrum - spectrum.mean())
                names.append(name)
                splits.append(row["split"])
    frames, names, train = np.array(frames), np.array(names), np.array(splits) == "train"
    classes = sorted(set(names[train]))
    means = np.array([frames[train & (names == name)].mean(0) for name in classes])
    guessed = np.array(classes)[((frames[~train][:, None] - means) ** 2).sum(2).argmin(1)]
    accuracy = (guessed == names[~train]).mean()
    assert 5 / len(classes) < accuracy < 0.95


def test_the_command_writes_both_sets(tmp_path, capsys):
    main([str(tmp_path), "--speakers", "2", "--clips", "1"])
    assert "train.zip" in capsys.readouterr().out
    assert (tmp_path / "test.zip").exists()
