"""Odd files, read for training and by the file that stands alone: both take the same ones, and
refuse the same ones."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest

from sjepa.dataset.audio import AudioInfo, DecodeError, decode, decode_window, probe, verify
from sjepa.inference import Recording, RecordingError
from tests.support.audio import encode, tone
from tests.support.odd_files import (
    flac_of_unknown_length,
    floats,
    mp3_that_starts,
    muxed,
    unknown_caf,
    wav_of_sizes,
    with_one,
    without_size,
    written,
)

SECOND, LONG = tone(1.0), tone(20.0)
VORBIS, FLAC, MP3 = written(LONG, "OGG", "VORBIS"), written(LONG, "FLAC", "PCM_16"), encode(LONG, 16000, "mp3")
GSM = written(LONG[:, 0], "WAV", "GSM610")
# an MPEG frame has 576 samples at this rate; a joined MP3 keeps what encoders add before and after
# the first part
TAKEN = {  # file, its length in samples, and by how many it may be off
    "a plain one.wav": (encode(SECOND, 16000, "wav"), 16000, 0),
    "floats at the scale of int16.wav": (floats(32767 * SECOND[:, 0]), 16000, 0),
    "floats at the scale of int32.wav": (floats(2.0**31 * 0.9 * SECOND[:, 0]), 16000, 0),
    "0 bytes claimed.wav": (wav_of_sizes(LONG, 0, 0), len(LONG), 0),
    "a header that was never finished.wav": (wav_of_sizes(LONG, 36, 0), len(LONG), 0),
    "unknown size.wav": (wav_of_sizes(LONG, 0xFFFFFFFF, 0xFFFFFFFF), len(LONG), 0),
    "more claimed than there is.wav": (wav_of_sizes(LONG, 10**6 + 36, 10**6)[: 44 + 32000], 16000, 0),
    **{
        f"never finished, {kind} {subtype}": (without_size(LONG, kind, subtype), len(LONG), 0)
        for kind, subtype in [
            ("WAV", "FLOAT"),
            ("WAV", "PCM_24"),
            ("WAVEX", "PCM_16"),
            ("RF64", "PCM_16"),
            ("W64", "PCM_16"),
            ("AIFF", "PCM_16"),
            ("AU", "PCM_16"),
            ("CAF", "PCM_16"),
        ]
    },
    "never finished, quiet start": (without_size(np.concatenate([0 * SECOND, SECOND]), "WAV"), 32000, 0),
    "unknown size.caf": (unknown_caf(LONG), len(LONG), 0),
    "mp3 inside.wav": (muxed(LONG, "wav", "libmp3lame"), len(LONG), 1900),
    "telephone.wav": (GSM, len(LONG), 320),
    "of adpcm.wav": (written(LONG[:, 0], "WAV", "IMA_ADPCM"), len(LONG), 1100),
    "sphere.sph": (written(LONG, "NIST", "PCM_16"), len(LONG), 0),
    "unknown length.flac": (flac_of_unknown_length(LONG), len(LONG), 0),
    "unknown length, one block.flac": (flac_of_unknown_length(LONG[:100]), 100, 0),
    "loud start, no length.mp3": (mp3_that_starts(loud=True), 558 * 576, 0),
    "quiet start, no length.mp3": (mp3_that_starts(loud=False), 558 * 576, 0),
    "steady, no length.mp3": (muxed(LONG, "mp3", "libmp3lame", write_xing="0", id3v2_version="0"), 558 * 576, 0),
    "joined.mp3": (MP3 + MP3, 2 * len(LONG), 1900),
    "joined with tags.mp3": (MP3 + b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + MP3, 2 * len(LONG), 1900),
    "cut.mp3": (MP3[: len(MP3) // 2], len(LONG) // 2, 2304),
    "junk between.mp3": (MP3[: len(MP3) // 2] + bytes(1000) + MP3[len(MP3) // 2 :], len(LONG), 1152),
    "a tag before.mp3": (b"ID3\x04\0\0\0\0\x0f\0" + bytes(15 * 128) + MP3, len(LONG), 0),
    "cut.ogg": (VORBIS[: len(VORBIS) // 2], len(LONG) // 2, len(LONG) // 6),
}
REFUSED = {  # file, and what is said of it
    "one absurd sample.wav": (floats(with_one(1e30)), "which no recording has"),
    "one sample not a number.wav": (floats(with_one(float("nan"))), "not finite"),
    "last sample not a number.wav": (floats(np.append(SECOND[:, 0], np.float32("nan"))), "not finite"),
    "no samples, cue points after.wav": (
        encode(SECOND[:0], 16000, "wav") + b"cue \x04\0\0\0\0\0\0\0",
        "no samples|too short",
    ),
    "one infinite sample.wav": (floats(with_one(float("inf"))), "not finite"),
    "empty.wav": (b"", "empty"),
    "text.wav": (b"not audio", "not audio"),
    "header alone.flac": (FLAC[:42], "cut off"),
    "cut.flac": (FLAC[: len(FLAC) // 2], "cut off"),
    "joined.flac": (FLAC + FLAC, "joined"),
    "joined.wav": (2 * encode(SECOND, 16000, "wav"), "joined"),
    "joined.ogg": (VORBIS + VORBIS, "joined"),
    "joined of two rates.mp3": (MP3 + encode(tone(3.0, 48000), 48000, "mp3"), "joined"),
    "no samples.wav": (encode(SECOND[:0], 16000, "wav"), "no samples|too short"),
    "no samples, a tag after.wav": (encode(SECOND[:0], 16000, "wav") + b"LIST\x04\0\0\0INFO", "no samples|too short"),
}


def for_training(data: bytes) -> np.ndarray:
    """Mono samples, as the scan and a worker take them."""
    info = probe(io.BytesIO(data))
    assert info.rate == 16000
    verify(io.BytesIO(data), info.samples, [(max(0, info.samples - 8000), info.samples)])
    mono, _ = decode(io.BytesIO(data))
    assert len(mono) == info.samples
    if data[:4] != b"OggS" and len(data) > 100:
        stated = probe(io.BytesIO(data), measure=False).samples  # exact, but for MP3 inside WAV
        assert abs(stated - info.samples) <= (576 if b"U\0" in data[20:22] else 0)
    return mono


def standing_alone(path: Path) -> np.ndarray:
    """The same of the other reader, a third of a second at a time."""
    with Recording(path, 16000) as recording:
        if not recording.samples:
            raise RecordingError(f"{path}: too short")
        cuts = [*range(0, recording.samples, 5333), recording.samples]
        return np.concatenate([recording.read(a, b) for a, b in itertools.pairwise(cuts)])


@pytest.mark.parametrize("name", TAKEN)
def test_both_readers_take_the_same_samples(name, tmp_path):
    data, length, off = TAKEN[name]
    (tmp_path / name).write_bytes(data)
    ours, alone = for_training(data), standing_alone(tmp_path / name)
    assert abs(len(ours) - length) <= off
    np.testing.assert_array_equal(alone, ours)


@pytest.mark.parametrize("name", REFUSED)
def test_both_readers_refuse_the_same_for_the_same_reason(name, tmp_path):
    data, said = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DecodeError, match=said) as ours:
        for_training(data)
    with pytest.raises(RecordingError, match=said) as alone:
        standing_alone(tmp_path / name)
    for error in (ours, alone):
        assert "0x" not in str(error.value)
        assert "\n" not in str(error.value)


def test_joined_mp3_holds_both_parts():
    late, expected = for_training(MP3 + MP3)[len(LONG) :], LONG[8000:16000, 0]
    shifts = [np.corrcoef(late[8000 + shift : 16000 + shift], expected)[0, 1] for shift in range(2304)]
    assert max(shifts) > 0.98


VIDEO = {
    "Matroska with AAC": muxed(tone(20.0, 44100), "matroska", "aac", 44100),
    "WebM with Opus": muxed(tone(20.0, 48000), "webm", "libopus", 48000),
    "Ogg with FLAC": muxed(LONG, "ogg", "flac"),
    "MPEG transport stream": muxed(tone(20.0, 44100), "mpegts", "aac", 44100),
    "QuickTime": muxed(tone(20.0, 44100), "mov", "aac", 44100),
    "MPEG-4": muxed(tone(20.0, 44100), "mp4", "aac", 44100),
    "True Audio": muxed(LONG, "tta", "tta"),
    "WavPack": muxed(LONG, "wv", "wavpack"),
    "ADTS": muxed(tone(20.0, 44100), "adts", "aac", 44100),
    "FLV": muxed(tone(20.0, 44100), "flv", "aac", 44100),
}


@pytest.mark.parametrize("name", VIDEO)
def test_the_length_found_is_the_length_decoded_and_windows_are_where_they_say(name):
    data = VIDEO[name]
    info = probe(io.BytesIO(data))
    whole, rate = decode(io.BytesIO(data))
    assert (info.rate, info.samples) == (rate, len(whole))
    verify(
        io.BytesIO(data), info.samples, [(0, info.samples), (0, 1000), (info.samples - 1000, info.samples)]
    )  # by one reader
    expected = tone(20.0, rate)[:, 0]
    # of what is heard, nothing is lost and nothing shifted but what the encoder puts before
    delays = [d for d in range(0, 4000) if len(whole) > len(expected) - 4000 + d]
    score = [float(np.dot(whole[d : d + rate], expected[:rate])) for d in delays]
    assert info.samples >= len(expected) - 1024
    delay = int(np.argmax(score))
    assert delay < 2200
    for second in (3, 19):
        start = second * rate
        window = decode_window(io.BytesIO(data), info, start=start, length=rate // 2, rate=rate)
        np.testing.assert_allclose(window, whole[start : start + rate // 2], atol=5e-3)


def test_a_file_that_is_shorter_by_now_is_not_read():
    with pytest.raises(DecodeError, match=r"ends after 1\.00 s, where the scan found 1\.88 s"):
        decode_window(
            io.BytesIO(encode(SECOND, 16000, "wav")), AudioInfo(30000, 16000, 1), start=0, length=30000, rate=16000
        )


def test_a_wav_of_more_than_four_gibibytes_is_read_to_its_end(tmp_path):
    """Its size has 32 bits: never written, not known, or what is left of it after 4 GiB."""
    samples = (1 << 31) + 12345 * 2
    header = bytearray(encode(SECOND[:0], 16000, "wav"))
    for claimed in (0, 0xFFFFFFFF, 2 * samples % (1 << 32)):
        header[40:44] = claimed.to_bytes(4, "little")
        with (tmp_path / "long.wav").open("wb") as file:  # a hole of zeros, and a second of sound at the end
            file.write(header)
            file.seek(44 + 2 * samples - 32000)
            file.write(encode(SECOND, 16000, "wav")[44:])
        with Recording(tmp_path / "long.wav", 16000) as recording:
            assert recording.samples == samples
            np.testing.assert_allclose(recording.read(samples - 16000, samples), SECOND[:, 0], atol=1e-4)


def test_a_large_avi_is_no_joined_wav():
    data = muxed(LONG, "avi", "libmp3lame")
    data += b"RIFF\x04\0\0\0AVIX"
    assert probe(io.BytesIO(data)).samples > len(LONG) - 2000


def test_odd_first_frames_of_mp3_do_no_harm():
    short = (
        bytes([0xFF, 0xF3, 0x14, 0xC0]) + bytes(9) + bytes(8) + b"Xing" + b"\xff\xf3\x14\xc1" + bytes(20)
    )  # no room for a number
    stereo = bytearray(encode(tone(3.0, channels=2), 16000, "mp3")[:400])
    for data in (short, b"\xff\xf3" + b"\xff" * (1 << 21)):  # nothing to hear
        with pytest.raises(DecodeError, match="not audio"):
            for_training(data)
    try:  # one version of the library reads on where another gives up
        mono = for_training(bytes(stereo) + MP3)
    except DecodeError:
        return
    assert len(LONG) - 2304 <= len(mono) <= len(LONG) + 2304


def test_what_is_said_of_a_rate_is_said_of_what_ffmpeg_reads_too():
    for data in (written(SECOND, "WAV", "PCM_16", rate=200), muxed(SECOND, "tta", "tta", rate=200)):
        with pytest.raises(DecodeError, match="a rate of 200 Hz, outside 1,000 to 768,000 Hz"):
            probe(io.BytesIO(data))
