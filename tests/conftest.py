"""Fixtures that several tests share: a small generated corpus and audio in every format."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from sjepa.dataset.demo import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.zip, test.zip and labels.tsv of generated speech: 4 speakers, 6 clips each."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, speakers=4, clips=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech that SJEPA_SPEECH names; without it the test says that it was skipped."""
    folder = os.environ.get("SJEPA_SPEECH")
    if not folder or not (Path(folder) / "train.zip").exists():
        pytest.skip("no real speech: set SJEPA_SPEECH to a folder with train.zip and test.zip")
    return Path(folder)


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A chirp with a little noise, [samples, channels] float32: band-limited to 3 kHz, so that any rate can carry it."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    chirp = 0.4 * np.sin(2 * np.pi * (200 + 500 * time) * time) + 0.2 * np.sin(2 * np.pi * 1800 * time)
    gains = rng.uniform(0.5, 1.0, channels)
    return (chirp[:, None] * gains).astype(np.float32)


Encode = Callable[..., bytes]


def encode(samples: np.ndarray, rate: int, ending: str) -> bytes:
    """`samples` [samples, channels] as a file of that ending."""
    formats = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
               "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16")}  # fmt: skip
    buffer = io.BytesIO()
    if ending in formats:
        kind, subtype = formats[ending]
        soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
        return buffer.getvalue()
    container, codec = {"m4a": ("mp4", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus")}[ending]
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return buffer.getvalue()
