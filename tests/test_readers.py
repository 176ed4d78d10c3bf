"""Odd files, read for training and by the file that stands alone: both take the same ones, and refuse the same ones."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sjepa.dataset.audio import DecodeError, decode, probe
from sjepa.inference import Recording, RecordingError
from tests.conftest import encode, tone


def floats(values: np.ndarray) -> bytes:
    """A WAV of 32-bit floats at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, values, 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def with_one(value: float) -> np.ndarray:
    samples = tone(1.0)[:, 0].copy()
    samples[8000] = value
    return samples


CASES = {  # file, whether it is taken
    "a plain one.wav": (encode(tone(1.0), 16000, "wav"), True),
    "floats at the scale of int16.wav": (floats(32767 * tone(1.0)[:, 0]), True),
    "floats at the scale of int32.wav": (floats(2.0**31 * 0.9 * tone(1.0)[:, 0]), True),
    "one absurd sample.wav": (floats(with_one(1e30)), False),
    "one sample not a number.wav": (floats(with_one(float("nan"))), False),
    "one infinite sample.wav": (floats(with_one(float("inf"))), False),
    "empty.wav": (b"", False),
    "text.wav": (b"not audio", False),
    "header alone.flac": (encode(tone(1.0), 16000, "flac")[:42], False),
}


def for_training(data: bytes) -> np.ndarray | None:
    """Mono samples, or None if they are refused."""
    try:
        assert probe(io.BytesIO(data)).rate == 16000
        return decode(io.BytesIO(data))[0]
    except DecodeError:
        return None


def standing_alone(path: Path) -> np.ndarray | None:
    """The same of the other reader; no samples are refused when they are to be frames."""
    try:
        with Recording(path, 16000) as recording:
            samples = recording.read(0, recording.samples)
    except RecordingError:
        return None
    return samples if len(samples) else None


@pytest.mark.parametrize("name", CASES)
def test_both_readers_decide_alike(name, tmp_path):
    data, taken = CASES[name]
    (tmp_path / name).write_bytes(data)
    ours, alone = for_training(data), standing_alone(tmp_path / name)
    assert (ours is not None, alone is not None) == (taken, taken)
    if ours is not None:
        np.testing.assert_allclose(alone, ours, rtol=1e-6)
