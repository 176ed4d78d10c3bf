"""Files as people have them: what a header claims is wrong, several in one, cut off, of other
kinds."""

from __future__ import annotations

import fractions
import io
import struct

import av
import numpy as np
import soundfile

from tests.support.audio import encode, tone

RATE = 16000


def written(samples: np.ndarray, kind: str, subtype: str, rate: int = RATE, **options: object) -> bytes:
    """By libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def muxed(samples: np.ndarray, container: str, codec: str, rate: int = RATE, **options: str) -> bytes:
    """By FFmpeg, [S, C]."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
        kind = stream.codec_context.codec.audio_formats[0].name
        resampler = av.AudioResampler(format=kind, layout=stream.layout.name, rate=rate)
        for start in range(0, len(samples), 4096):
            piece = np.ascontiguousarray(samples[start : start + 4096].T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, fractions.Fraction(1, rate)
            for part in resampler.resample(frame):
                for packet in stream.encode(part):
                    output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return buffer.getvalue()


def mp3_that_starts(loud: bool, seconds: float = 20.0) -> bytes:
    """MP3 of variable bit rate without the frame that says how long it is, whose beginning is no
    measure of the rest."""
    rng = np.random.default_rng(1)
    noise = 0.2 * rng.standard_normal((round(seconds * RATE), 1)).astype(np.float32)
    split = len(noise) // 5
    samples = (
        np.concatenate([noise[:split], 1e-4 * noise[split:]])
        if loud
        else noise * (np.arange(len(noise)) > split)[:, None]
    )
    data = written(samples.astype(np.float32), "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.3)
    return data[mp3_frame_bytes(data) :]


def mp3_frame_bytes(data: bytes) -> int:
    """Of the first frame, MPEG-2 layer III at 16 kHz."""
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[data[2] >> 4]
    return 72 * kbps * 1000 // RATE + (data[2] >> 1 & 1)


def flac_of_unknown_length(samples: np.ndarray) -> bytes:
    """As it is written to a pipe."""
    data = bytearray(written(samples, "FLAC", "PCM_16"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def wav_of_sizes(samples: np.ndarray, riff: int, size: int) -> bytes:
    """A WAV whose header claims these."""
    data = bytearray(encode(samples, RATE, "wav"))
    data[4:8], data[40:44] = struct.pack("<I", riff), struct.pack("<I", size)
    return bytes(data)


def without_size(samples: np.ndarray, kind: str, subtype: str = "PCM_16") -> bytes:
    """As a recorder leaves it that was killed: nothing says how many samples follow."""
    data = bytearray(written(samples, kind, subtype))
    at = {"AU": lambda: [(8, 4)], "AIFF": lambda: [(4, 4), (data.find(b"COMM") + 10, 4), (data.find(b"SSND") + 4, 4)],
          "W64": lambda: [(16, 8), (data.find(b"data") + 16, 8)], "CAF": lambda: [(data.find(b"data") + 4, 8)],
          "RF64": lambda: [(data.find(b"ds64") + 8, 24)]}.get(kind, lambda: [(4, 4), (data.find(b"data") + 4, 4)])  # fmt: skip
    for place, size in at():
        data[place : place + size] = bytes(size)
    return bytes(data)


def unknown_caf(samples: np.ndarray) -> bytes:
    """A CAF as it is written to a pipe."""
    data = bytearray(written(samples, "CAF", "PCM_16"))
    place = data.find(b"data") + 4
    data[place : place + 8] = b"\xff" * 8
    return bytes(data)


def floats(values: np.ndarray) -> bytes:
    """A WAV of 32-bit floats at 16 kHz."""
    return written(values, "WAV", "FLOAT")


def with_one(value: float) -> np.ndarray:
    """A second in which one sample is this."""
    samples = tone(1.0)[:, 0].copy()
    samples[8000] = value
    return samples
