"""runinfer: one file that stands alone."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from sjepa import inference
from sjepa.core.frames import SPEECH
from sjepa.inference import InputError, Model, Recording, Resampler, main
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.export.onnx import WaveformToFeatures, write_onnx
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from tests.support.audio import encode, tone

METADATA = {
    "sample_rate": "16000",
    "hop_samples": "320",
    "receptive_field_samples": "400",
    "width": "32",
    "num_layers": "2",
}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(EncoderShape(24, 2, TransformerShape(32, 2, 48), position_kernel=16, position_groups=4)).eval()


@pytest.fixture(scope="module")
def path(encoder, tmp_path_factory):
    target = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    write_onnx(WaveformToFeatures(encoder, all_layers=True), target, metadata=METADATA)
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    target = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(target, tone(3.0)[:, 0], 16000, subtype="FLOAT")
    return target


@pytest.mark.slow
def test_it_imports_four_packages_and_runs_alone_in_an_empty_folder(path, clip, tmp_path):
    source = Path(inference.__file__)
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - sys.stdlib_module_names == {"numpy", "soundfile", "onnxruntime", "yaml"}
    shutil.copy(source, tmp_path / "infer.py")
    (tmp_path / "export.yaml").write_text(f"onnx_path: {path}\naudio: {clip}\n")
    check = "import runpy, sys; sys.argv = ['infer.py', '-c', 'export.yaml', '--out', 'f.npy']\ntry: runpy.run_path('infer.py', run_name='__main__')\nfinally: assert not any(name.split('.')[0] in ('sjepa', 'torch') for name in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "features [149, 32] at 50 frames per second from 3.00 s of audio, written to f.npy" in done.stdout
    assert "real-time factor" in done.stdout
    features = np.load(tmp_path / "f.npy")
    assert np.array2string(features, threshold=0, edgeitems=3, precision=4, suppress_small=True) in done.stdout
    assert features.shape == (149, 32)


@pytest.mark.slow
def test_features_are_the_encoders(path, encoder, clip):
    with torch.no_grad():
        expected = encoder(torch.from_numpy(soundfile.read(clip, dtype="float32")[0])[None])
    model = Model(path)
    assert np.abs(model.file(clip) - expected.features_BTD[0].numpy()).max() < 1e-4
    for layer in (0, 1, -2):
        assert np.abs(model.file(clip, layer=layer) - expected.layers[layer][0].numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000, 15999])
def test_resampling_is_soxrs_to_sixty_decibels(rate):
    """Speech-like sound up to 3 kHz, away from the ends, where the two assume other things."""
    wave = tone(2.0, rate)[:, 0]
    resampler = Resampler(rate, 16000)
    count = resampler.length(len(wave))
    low, high = resampler.needs(0, count)
    own = resampler(np.pad(wave, (-low, max(0, high - len(wave))))[: high - low], 0, count)
    reference = soxr.resample(wave, rate, 16000, quality="VHQ")
    assert abs(len(own) - len(reference)) <= 1
    inside = slice(2000, min(len(own), len(reference)) - 2000)
    error = own[inside] - reference[inside]
    assert 10 * np.log10(np.mean(reference[inside] ** 2) / np.mean(error**2)) > 60


def test_what_is_above_the_new_nyquist_does_not_come_back():
    wave = np.sin(2 * np.pi * 12000 * np.arange(96000) / 48000).astype(np.float32)
    resampler = Resampler(48000, 16000)
    low, high = resampler.needs(200, 30000)
    out = resampler(wave[low:high], 200, 30000)
    assert 10 * np.log10(np.mean(out**2) / 0.5) < -60


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
def test_any_piece_is_that_piece_of_the_whole(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(2.0, rate, 2), rate, subtype="FLOAT")
    with Recording(tmp_path / "a.wav", 16000) as recording:
        whole = recording.read(0, recording.samples)
        assert len(whole) == recording.samples == 32000
        for start, stop in ((0, 10), (1, 5000), (17000, 32000), (31990, 32000)):
            assert np.abs(recording.read(start, stop) - whole[start:stop]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus"])
def test_any_format_of_libsndfile_gives_the_frames_of_its_length(path, tmp_path, ending):
    rate = 48000 if ending == "opus" else 44100
    (tmp_path / f"a.{ending}").write_bytes(encode(tone(1.5, rate, 2), rate, ending))
    assert abs(len(Model(path).file(tmp_path / f"a.{ending}")) - 74) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("samples", [400, 719, 720, 16000 * 34, 16000 * 34 + 320, 16000 * 95 + 77, 16000 * 120])
def test_chunks_give_every_frame_once_and_in_its_place(path, samples):
    model = Model(path)
    spans = model.spans(samples)
    assert sum(span.last - span.first for span in spans) == model.frames(samples) == SPEECH.frames(samples)
    frame = 0
    for span in spans:
        assert span.start % 320 == 0
        assert span.start // 320 + span.first == frame  # its time is that of the whole recording
        assert span.stop <= samples
        assert model.frames(span.stop - span.start) >= span.last
        assert span.stop - span.start <= 34.1 * 16000
        frame += span.last - span.first
    assert len(spans) == (1 if samples <= 34 * 16000 + 399 else -(-model.frames(samples) // 1500))


@pytest.mark.slow
def test_each_chunk_is_a_pass_over_its_own_samples(path, encoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.tile(tone(10.0)[:, 0], 6), 16000, subtype="FLOAT")
    model, wave = Model(path), soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    features = model.file(tmp_path / "a.wav", chunk_seconds=10)
    assert len(features) == SPEECH.frames(len(wave))
    frame = 0
    for span in model.spans(len(wave), 10):
        with torch.no_grad():
            own = encoder(torch.from_numpy(wave[span.start : span.stop])[None]).features_BTD[0].numpy()
        count = span.last - span.first
        assert np.abs(features[frame : frame + count] - own[span.first : span.last]).max() < 1e-4
        frame += count


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a program's peak")
def test_three_hours_take_flat_memory(path, tmp_path):
    """In a process of its own: at most 150 MB more than ten minutes take."""
    peaks = []
    for minutes in (10, 180):
        with soundfile.SoundFile(tmp_path / "long.flac", "w", 16000, 1) as file:
            for second in range(minutes):
                file.write(np.tile(tone(1.0, seed=second)[:, 0], 60))
        code = (
            "from pathlib import Path\nfrom sjepa.inference import main\n"
            f"assert main(['--model', {str(path)!r}, '--audio', 'long.flac', '--out', 'f.npy', '--threads', '1']) == 0\n"
            "(peak,) = [line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line]\n"
            "print(int(peak) // 1024)"  # of this program alone: what getrusage says counts its parent's pages too
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
        assert np.load(tmp_path / "f.npy", mmap_mode="r").shape == (SPEECH.frames(minutes * 60 * 16000), 32)
    assert peaks[1] < peaks[0] + 150


@pytest.mark.slow
def test_several_recordings_and_folders_get_a_file_for_each_recording(path, tmp_path, capsys):
    for name in ("x/a.wav", "x/sub/b.flac", "y/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, tone(1.0)[:, 0], 16000)
    (tmp_path / "x/notes.txt").write_text("no audio")
    arguments = ["--model", str(path), "--audio", str(tmp_path / "x"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["a.npy", "b.npy"]
    assert capsys.readouterr().out.count("features [49, 32]") == 2
    assert main([*arguments[:3], str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all").iterdir())) == 3


@pytest.mark.slow
def test_mistakes_are_one_clear_line(path, clip, tmp_path, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(399), 16000)
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    good = ["--model", str(path), "--audio", str(clip)]
    for arguments, message in (
        (["--model", str(path), "--audio", "nowhere.wav"], "nowhere.wav: no such file"),
        (["--model", str(path), "--audio", str(tmp_path / "text.wav")], "not audio that libsndfile reads"),
        (
            ["--model", str(path), "--audio", str(tmp_path / "short.wav")],
            "399 samples at 16000 Hz are too short for a frame (400)",
        ),
        (["--model", str(path), "--audio", str(tmp_path / "nan.wav")], "samples that are not finite numbers"),
        (["--model", str(path), "--audio", str(tmp_path / "empty")], "no recording in this folder"),
        (["--model", str(tmp_path / "bad.onnx"), "--audio", str(clip)], "bad.onnx: not an ONNX model"),
        (["--model", "nowhere.onnx", "--audio", str(clip)], "nowhere.onnx: no such file; exportw writes it"),
        (["--audio", str(clip)], "no model: give --model FILE.onnx"),
        (["--model", str(path)], "no recording: give --audio FILE"),
        (["-c", str(tmp_path / "bad.yaml")], "bad.yaml: cannot be read"),
        (["-c", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ([*good, "--layer", "7"], "--layer: 7 is outside the 2 layers of this model"),
        ([*good, "--chunk", "0"], "--chunk: 0 is not a time in seconds"),
        ([*good, "--out", "/dev/null/f.npy"], "f.npy: cannot be written"),
        (["word", *good], "word: not key=value"),
    ):
        assert main(arguments) == 2, arguments
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("runinfer: ")
        assert message in line
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_a_bad_recording_does_not_stop_the_others(path, clip, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clip, folder / "c.wav")
    (folder / "a.wav").write_text("not audio")
    soundfile.write(folder / "b.wav", np.zeros(399), 16000)
    assert main(["--model", str(path), "--audio", str(folder), "nowhere.wav", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["c.npy"]
    assert "c.wav: features [149, 32]" in told.out
    lines = told.err.splitlines()
    assert [any(name in line for line in lines) for name in ("a.wav", "b.wav", "nowhere.wav")] == [True] * 3
    assert len(lines) == 3


@pytest.mark.slow
def test_no_two_recordings_share_a_file(path, tmp_path, capsys):
    names = ["a.flac", "a.wav", "x/b.wav", "y/B.wav"]
    for name in names:
        target = tmp_path / "in" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, 0.1 * np.ones(1600), 16000)
    audio, out = str(tmp_path / "in"), tmp_path / "out"
    assert main(["--model", str(path), "--audio", audio, f"{audio}/a.wav", "--out", str(out)]) == 0
    assert len({item.name.casefold() for item in out.iterdir()}) == len(names)
    soundfile.write(tmp_path / "in" / "a_wav.flac", 0.1 * np.ones(1600), 16000)
    soundfile.write(tmp_path / "in" / "A.wav", 0.1 * np.ones(1600), 16000)
    assert main(["--model", str(path), "--audio", audio, "--out", str(tmp_path / "other")]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_resource_fork_of_a_mac_beside_a_recording_does_no_harm(path, tmp_path):
    """AppleDouble, as a stick has them: libsndfile takes such a neighbour for the fork of a Sound
    Designer II file."""
    (tmp_path / "a.mp3").write_bytes(encode(tone(1.0), 16000, "mp3"))
    (tmp_path / "._a.mp3").write_bytes(bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(4072))
    assert main(["--model", str(path), "--audio", str(tmp_path)]) == 0


@pytest.mark.slow
def test_a_terminal_that_knows_no_such_letters_gets_them_escaped(path, tmp_path):
    soundfile.write(tmp_path / "bär→.wav", 0.1 * np.ones(1600), 16000)
    command = [sys.executable, "-m", "sjepa.inference", "--model", str(path), "--audio", str(tmp_path), "nowhere→.wav"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "b\\xe4r\\u2192.wav: features [4, 32]" in done.stdout
    assert done.stderr.endswith("nowhere\\u2192.wav: no such file or directory\n")


@pytest.mark.slow
def test_an_interrupt_is_one_line(path, clip, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "chunks", interrupted)
    assert main(["--model", str(path), "--audio", str(clip)]) == 130
    assert capsys.readouterr().err == "runinfer: interrupted\n"


@pytest.mark.slow
def test_nothing_half_written_stays(path, tmp_path):
    content = encode(tone(60.0), 16000, "flac")
    broken = bytearray(content)
    broken[len(broken) // 2 : len(broken) // 2 + 4000] = bytes(4000)
    (tmp_path / "a.flac").write_bytes(broken)
    assert (
        main(
            [
                "--model",
                str(path),
                "--audio",
                str(tmp_path / "a.flac"),
                "--out",
                str(tmp_path / "f.npy"),
                "--chunk",
                "5",
            ]
        )
        == 2
    )
    assert [item.name for item in tmp_path.iterdir()] == ["a.flac"]


@pytest.mark.slow
def test_a_model_of_one_layer_says_so(encoder, clip, tmp_path):
    write_onnx(WaveformToFeatures(encoder, all_layers=False), tmp_path / "a.onnx", metadata=METADATA)
    with pytest.raises(InputError, match=r"export\.all_layers=true"):
        Model(tmp_path / "a.onnx").file(clip, layer=0)
    write_onnx(WaveformToFeatures(encoder, all_layers=False), tmp_path / "b.onnx", metadata={})
    with pytest.raises(InputError, match="not an encoder that exportw wrote"):
        Model(tmp_path / "b.onnx")


@pytest.mark.slow
def test_the_configuration_gives_what_arguments_do_not(path, clip, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(f"onnx_path: nowhere.onnx\naudio: {clip}\ntrain: {{epochs: 3}}\n")
    assert main(["-c", str(tmp_path / "a.yaml"), f"onnx_path={path}"]) == 0
    assert "features [149, 32]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp3", "ogg"])
def test_compressed_files_have_the_same_samples_in_any_pieces(path, tmp_path, ending):
    (tmp_path / f"long.{ending}").write_bytes(encode(tone(30.0), 16000, ending))
    model = Model(path)
    with Recording(tmp_path / f"long.{ending}", 16000) as recording:
        pieces = [
            recording.read(start, min(recording.samples, start + 48000)) for start in range(0, recording.samples, 32000)
        ]
        whole = recording.read(0, recording.samples)
    for number, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, whole[32000 * number : 32000 * number + len(piece)])
    assert len(model.file(tmp_path / f"long.{ending}", chunk_seconds=5.0)) == model.frames(len(whole))


@pytest.mark.slow
def test_files_of_other_endings_are_counted(path, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    for name in ("b.m4a", "c.m4a", "notes.txt", "._a.wav"):
        (tmp_path / name).write_bytes(b"x")
    assert main(["--model", str(path), "--audio", str(tmp_path)]) == 0
    assert "skipped by file ending: 2 .m4a, 1 .txt" in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_runtime_is_one_line(path, clip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["--model", str(path), "--audio", str(clip)]) == 2
    assert "needs the package onnxruntime: pip install onnxruntime" in capsys.readouterr().err


@pytest.mark.slow
def test_names_with_line_breaks_stay_on_a_line(path, tmp_path, capsys):
    (tmp_path / "a\tb\nc.wav").write_bytes(encode(tone(1.0), 16000, "wav"))
    (tmp_path / "d\ne.wav").write_bytes(b"no audio")
    assert main(["--model", str(path), "--audio", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "a\\tb\\nc.wav: features" in said.out
    (line,) = said.err.splitlines()
    assert "d\\ne.wav: not audio" in line
