"""Files damaged at random: read or refused, by both readers alike, in bounded time and memory.

In a process of its own, so that a decoder that crashes or takes memory is found. SJEPA_DAMAGED sets
how many files per format: a thousand take about ten seconds each.
"""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import encode, tone
from tests.support.odd_files import flac_of_unknown_length, muxed, written

COUNT = int(os.environ.get("SJEPA_DAMAGED", "25"))
GIBIBYTE = 1 << 30
SECONDS = 4.0
FORMATS = {
    "wav": lambda: encode(tone(SECONDS), 16000, "wav"),
    "stereo.wav": lambda: encode(tone(SECONDS, 44100, 2), 44100, "wav"),
    "float.wav": lambda: written(tone(SECONDS), "WAV", "FLOAT"),
    "telephone.wav": lambda: written(tone(SECONDS)[:, 0], "WAV", "GSM610"),
    "adpcm.wav": lambda: written(tone(SECONDS)[:, 0], "WAV", "IMA_ADPCM"),
    "flac": lambda: encode(tone(SECONDS), 16000, "flac"),
    "unknown.flac": lambda: flac_of_unknown_length(tone(SECONDS)),
    "ogg": lambda: encode(tone(SECONDS), 16000, "ogg"),
    "opus": lambda: encode(tone(SECONDS, 48000), 48000, "opus"),
    "mp3": lambda: encode(tone(SECONDS), 16000, "mp3"),
    "aiff": lambda: encode(tone(SECONDS), 16000, "aiff"),
    "au": lambda: written(tone(SECONDS), "AU", "PCM_16"),
    "caf": lambda: written(tone(SECONDS), "CAF", "PCM_16"),
    "alac.caf": lambda: written(tone(SECONDS), "CAF", "ALAC_16"),
    "sph": lambda: written(tone(SECONDS), "NIST", "PCM_16"),
    "flac.oga": lambda: muxed(tone(SECONDS), "ogg", "flac"),
    "m4a": lambda: muxed(tone(SECONDS, 44100), "mp4", "aac", 44100),
    "mov": lambda: muxed(tone(SECONDS, 44100), "mov", "aac", 44100),
    "aac": lambda: muxed(tone(SECONDS, 44100), "adts", "aac", 44100),
    "webm": lambda: muxed(tone(SECONDS, 48000), "webm", "libopus", 48000),
    "mka": lambda: muxed(tone(SECONDS, 44100), "matroska", "aac", 44100),
    "ts": lambda: muxed(tone(SECONDS, 44100), "mpegts", "aac", 44100),
    "wv": lambda: muxed(tone(SECONDS), "wv", "wavpack"),
    "tta": lambda: muxed(tone(SECONDS), "tta", "tta"),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, with bits turned, blocks swapped, overwritten or repeated; half of it near the
    beginning, where headers are."""
    broken = bytearray(data)
    size = min(len(data), 200) if rng.random() < 0.5 else len(data)
    for _ in range(rng.integers(1, 4)):
        kind, at = rng.integers(6), int(rng.integers(size))
        length = int(rng.integers(1, max(2, size // 4)))
        if kind == 0:
            del broken[max(1, int(rng.integers(len(broken)))) :]
        elif kind == 1:
            for place in rng.integers(0, max(1, min(size, len(broken))), rng.integers(1, 20)):
                broken[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            other = int(rng.integers(len(broken) + 1))
            broken[at : at + length], broken[other : other + length] = (
                broken[other : other + length],
                broken[at : at + length],
            )
        elif kind == 3:
            broken[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
        elif kind == 4:
            broken[at : at + length] = rng.bytes(length)
        else:
            broken[at:at] = broken[at : at + length]
    return bytes(broken)


def check(ending: str, count: int, folder: Path) -> None:
    """Reads `count` damaged files both ways; prints what became of them."""
    from sjepa.dataset.audio import DecodeError, decode, decode_window, probe
    from sjepa.dataset.examine import examine
    from sjepa.inference import Recording, RecordingError

    data = FORMATS[ending]()
    rng = np.random.default_rng(sum(ending.encode()))
    taken = alike = longer = 0
    slowest, said = 0.0, set()
    path = folder / f"a.{ending}"
    for number in range(count):
        broken = damaged(data, rng)
        (folder / "last").write_bytes(broken)
        path.write_bytes(broken)
        ours = alone = None
        began = time.perf_counter()
        try:
            with path.open("rb") as file:
                info = probe(file)
                examine(file, info, 0.0, None, "ends")
                whole, rate = decode(file)
                ours = len(whole)
                start = ours // 2
                window = decode_window(file, info, start=start, length=min(8000, ours - start), rate=rate)
                assert np.isfinite(whole).all()
                same = np.abs(window - whole[start : start + len(window)]).max(initial=0) < 1e-2
                assert same or not taken_exactly(ending), f"{number}: a window from elsewhere"
        except DecodeError as error:
            said.add(str(error))
        try:
            with Recording(path, 16000) as recording:
                cuts = [*range(0, recording.samples, 16000), recording.samples]
                alone = sum(len(recording.read(a, b)) for a, b in itertools.pairwise(cuts))
        except RecordingError as error:
            said.add(str(error))
        slowest = max(slowest, time.perf_counter() - began)
        taken += ours is not None
        longer += ours is not None and ours > 4 * SECONDS * 48000
        alike += (ours is None) == (not alone)
    memory = peak_bytes()
    print(f"{ending}: {count} damaged, {taken} read, {count - taken} refused; {alike} alike; {longer} far longer; "
          f"slowest {slowest:.2f} s; {memory / (1 << 20):.0f} MiB", flush=True)  # fmt: skip
    assert not [text for text in said if "\n" in text or "0x" in text or len(text) > 300]
    assert alike >= 0.8 * count or not read_by_both(ending)
    assert memory < GIBIBYTE
    assert slowest < 20


def peak_bytes() -> int:
    """Of this process since it was started (proc(5)); 0 where that is not told."""
    try:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    except (OSError, ValueError):
        return 0
    return int(line.split()[1]) * 1024


def read_by_both(ending: str) -> bool:
    """libsndfile reads the format: the file that stands alone has no other reader."""
    return ending not in ("flac.oga", "m4a", "mov", "aac", "webm", "mka", "ts", "wv", "tta")


def taken_exactly(ending: str) -> bool:
    return ending not in ("m4a", "mov", "mka", "ts", "aac")


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(tmp_path):
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.test_damage", str(COUNT), str(tmp_path)],
        capture_output=True, text=True, timeout=120 + COUNT, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert "Traceback" not in run.stderr


if __name__ == "__main__":
    for name in sys.argv[3:] or FORMATS:
        check(name, int(sys.argv[1]), Path(sys.argv[2]))
