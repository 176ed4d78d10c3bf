"""Audio made for tests, in any format."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import soundfile


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A chirp and a steady tone, [samples, channels] float32, below 3 kHz, so that any rate can
    carry it. `seed` draws how loud each channel is, and nothing else."""
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


def waveforms():
    rng = np.random.default_rng(0)
    speech_like = tone(2.3)[:, 0] * (0.1 + np.abs(np.sin(np.arange(36800) / 3000))).astype(np.float32)
    silence = np.concatenate([np.zeros(9000, np.float32), tone(0.7)[:, 0], np.zeros(5000, np.float32)])
    return {"chirp": speech_like, "noise": rng.normal(0, 0.1, 20000).astype(np.float32), "silence around": silence,
            "quiet": speech_like * 1e-4, "shortest": speech_like[:720]}  # fmt: skip
