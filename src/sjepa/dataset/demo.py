"""A small corpus of generated, speech-like audio with known phones, words and speakers.

`python -m sjepa.dataset.demo OUT --speakers N --clips N --seed S` writes OUT/train.zip,
OUT/test.zip, OUT/labels.tsv and OUT/sample.flac (the first clip of the test set).

A source–filter model (Fant 1960): a glottal sawtooth and noise, filtered by formant resonances with
coarticulation and target undershoot. Vowel formants are the averages of Peterson & Barney (1952).
Speakers differ in pitch, vocal tract length, breathiness and speaking rate; recordings in room,
microphone, noise and level. Every file is a function of (seed, speaker, clip).
"""

from __future__ import annotations

import argparse
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import fftconvolve, istft, stft

from sjepa.core.files import atomic_path, write_text
from sjepa.core.frames import SPEECH
from sjepa.core.random import generator

SAMPLE_RATE = SPEECH.sample_rate
_HOP, _WINDOW = SAMPLE_RATE // 200, SAMPLE_RATE // 50  # 5 ms control rate
_CONTROL_HZ = SAMPLE_RATE // _HOP
_COARTICULATION_SECONDS = 0.08
# frequencies of the random microphone response
_CHANNEL_HZ = (0, 125, 250, 500, 1000, 2000, 4000, 8000)

Floats = NDArray[np.float64]


class Phone(NamedTuple):
    """Targets of one phone: formants (Hz), voicing and frication amplitudes, centre and width of
    the frication (Hz), typical seconds. A stop is silent for its closure and then bursts."""

    formants: tuple[float, float, float]
    voicing: float
    frication: float
    centre: float
    width: float
    seconds: float
    stop: bool = False


def _vowel(f1: float, f2: float, f3: float, seconds: float = 0.11) -> Phone:
    return Phone((f1, f2, f3), 1.0, 0.0, 3000, 2000, seconds)


PHONES: dict[str, Phone] = {
    "IY": _vowel(270, 2290, 3010), "IH": _vowel(390, 1990, 2550, 0.08), "EH": _vowel(530, 1840, 2480, 0.09),
    "AE": _vowel(660, 1720, 2410, 0.12), "AA": _vowel(730, 1090, 2440, 0.12), "AO": _vowel(570, 840, 2410, 0.12),
    "UH": _vowel(440, 1020, 2240, 0.08), "UW": _vowel(300, 870, 2240), "AH": _vowel(640, 1190, 2390, 0.08),
    "ER": _vowel(490, 1350, 1690, 0.11),
    "M": Phone((250, 1000, 2200), 0.35, 0.0, 3000, 2000, 0.07), "N": Phone((250, 1600, 2600), 0.35, 0.0, 3000, 2000, 0.06),
    "NG": Phone((250, 2100, 2700), 0.3, 0.0, 3000, 2000, 0.07),
    "L": Phone((360, 1000, 2800), 0.6, 0.0, 3000, 2000, 0.06), "R": Phone((330, 1060, 1400), 0.6, 0.0, 3000, 2000, 0.06),
    "W": Phone((300, 610, 2200), 0.55, 0.0, 3000, 2000, 0.06), "Y": Phone((270, 2200, 3000), 0.55, 0.0, 3000, 2000, 0.05),
    "F": Phone((400, 1100, 2200), 0.0, 0.18, 5500, 5000, 0.10), "V": Phone((300, 1100, 2200), 0.35, 0.1, 5500, 5000, 0.06),
    "S": Phone((400, 1700, 2600), 0.0, 0.55, 5800, 1800, 0.11), "Z": Phone((300, 1700, 2600), 0.35, 0.3, 5800, 1800, 0.08),
    "SH": Phone((400, 1900, 2600), 0.0, 0.5, 3300, 1400, 0.11), "HH": Phone((500, 1500, 2500), 0.05, 0.15, 1600, 2500, 0.06),
    "P": Phone((400, 900, 2200), 0.0, 0.3, 1200, 2500, 0.09, True), "B": Phone((300, 900, 2200), 0.25, 0.2, 1200, 2500, 0.07, True),
    "T": Phone((400, 1800, 2700), 0.0, 0.5, 4500, 2500, 0.09, True), "D": Phone((300, 1800, 2700), 0.25, 0.3, 4500, 2500, 0.06, True),
    "K": Phone((400, 1900, 2300), 0.0, 0.45, 2300, 1000, 0.10, True), "G": Phone((300, 1900, 2300), 0.25, 0.3, 2300, 1000, 0.07, True),
}  # fmt: skip

LEXICON: dict[str, str] = {
    "ABOVE": "AH B AH V", "BAD": "B AE D", "BEES": "B IY Z", "BIG": "B IH G", "BIRD": "B ER D", "BOOK": "B UH K",
    "BUS": "B AH S", "CALL": "K AO L", "CAT": "K AE T", "COOK": "K UH K", "DARK": "D AA R K", "DISH": "D IH SH",
    "DOG": "D AO G", "FISH": "F IH SH", "FIVE": "F AA IY V", "FOOD": "F UW D", "FOUR": "F AO R", "GIRL": "G ER L",
    "GOOD": "G UH D", "GREEN": "G R IY N", "HAT": "HH AE T", "HEAD": "HH EH D", "HERD": "HH ER D", "KING": "K IH NG",
    "LEAF": "L IY F", "LONG": "L AO NG", "MEN": "M EH N", "MILK": "M IH L K", "MOON": "M UW N", "NEVER": "N EH V ER",
    "NOSE": "N AO UH Z", "PAPER": "P EH IY P ER", "PUT": "P UH T", "RED": "R EH D", "RIVER": "R IH V ER",
    "SEVEN": "S EH V AH N", "SHEEP": "SH IY P", "SHOES": "SH UW Z", "SING": "S IH NG", "SIX": "S IH K S",
    "SUN": "S AH N", "TEN": "T EH N", "TOUGH": "T AH F", "TREE": "T R IY", "TWO": "T UW", "VAN": "V AE N",
    "WATER": "W AO T ER", "WISH": "W IH SH", "YARD": "Y AA R D", "YELLOW": "Y EH L AO", "YOU": "Y UW", "ZOO": "Z UW",
}  # fmt: skip


@dataclass(frozen=True)
class Speaker:
    """One voice. `tract` scales formants (1: an adult man), `rate` speeds speech up."""

    name: str
    gender: str
    pitch_hz: float
    tract: float
    breathiness: float
    rate: float


@dataclass(frozen=True)
class Utterance:
    """Audio (mono float32, 16 kHz), its words and its phones with (start, end) in seconds; pauses
    are SIL."""

    audio: NDArray[np.float32]
    words: list[str]
    phones: list[tuple[str, float, float]]


def speaker(number: int, seed: int) -> Speaker:
    """The voice of speaker `number`; genders alternate."""
    rng = generator(seed, "speaker", number)
    gender = "mf"[number % 2]
    pitch, tract = (rng.uniform(85, 150), rng.uniform(0.92, 1.06)) if gender == "m" else (
        rng.uniform(165, 260), rng.uniform(1.08, 1.24))  # fmt: skip
    return Speaker(f"S{number:02d}", gender, pitch, tract, rng.uniform(0.02, 0.25), rng.uniform(0.85, 1.25))


def utterance(voice: Speaker, rng: np.random.Generator) -> Utterance:
    """One sentence of three to seven words from the lexicon, spoken by `voice`."""
    words = [str(word) for word in rng.choice(list(LEXICON), size=rng.integers(3, 8))]
    segments: list[tuple[str, float]] = [("SIL", rng.uniform(0.08, 0.25))]
    for word in words:
        segments += [
            (name, PHONES[name].seconds / voice.rate * rng.uniform(0.8, 1.3)) for name in LEXICON[word].split()
        ]
        if rng.random() < 0.35:
            segments.append(("SIL", rng.uniform(0.05, 0.3)))
    segments.append(("SIL", rng.uniform(0.08, 0.25)))
    ends = np.round(np.cumsum([seconds for _, seconds in segments]) * _CONTROL_HZ).astype(int)
    starts = np.concatenate([[0], ends[:-1]])
    names = [name for name, _ in segments]
    audio = _synthesise(voice, names, starts, ends, rng)
    times = [(n, s / _CONTROL_HZ, e / _CONTROL_HZ) for n, s, e in zip(names, starts, ends, strict=True)]
    return Utterance(audio, words, times)


def _synthesise(
    voice: Speaker, names: list[str], starts: NDArray[np.int64], ends: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    tracks = _control_tracks(names, starts, ends)
    samples = int(ends[-1]) * _HOP
    seconds = np.arange(samples) / SAMPLE_RATE
    drift = (
        1.1 - 0.2 * seconds / seconds[-1] + 0.03 * np.sin(2 * np.pi * rng.uniform(2, 4) * seconds + rng.uniform(0, 6))
    )
    phase = np.cumsum(voice.pitch_hz * drift / SAMPLE_RATE) % 1
    glottis = (2 * phase - 1) + voice.breathiness * rng.standard_normal(samples) * (0.5 + phase)
    voiced = _shape(glottis, _formant_gain(tracks["formants"] * voice.tract) * tracks["voicing"])
    hiss = _shape(rng.standard_normal(samples), _band_gain(tracks["centre"], tracks["width"]) * tracks["frication"])
    speech = voiced / (np.abs(voiced).max() + 1e-9) + 0.35 * hiss / (np.abs(hiss).max() + 1e-9)
    return _recorded(speech, rng)


def _recorded(speech: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
    """Simulated recording: reverberation, noise, microphone frequency response and level."""
    samples, reach = len(speech), SAMPLE_RATE // 2
    decay_seconds, share = rng.uniform(0.05, 0.25), rng.uniform(0.1, 0.5)
    echoes = rng.standard_normal(reach) * np.exp(-np.arange(reach) / (decay_seconds * SAMPLE_RATE))
    echoes *= share / np.linalg.norm(echoes)
    echoes[0] += 1.0
    heard = fftconvolve(speech, echoes)[:samples]
    colour = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) / (1 + np.arange(samples // 2 + 1) / samples * 40))
    noise = np.pad(colour, (0, samples - len(colour)))
    noise *= np.linalg.norm(heard) / np.linalg.norm(noise) * 10 ** (-rng.uniform(8, 30) / 20)
    gain_db = np.interp(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), _CHANNEL_HZ, rng.uniform(-4, 4, len(_CHANNEL_HZ)))
    taken = np.fft.irfft(np.fft.rfft(heard + noise) * 10 ** (gain_db / 20), samples)
    level = 10 ** (rng.uniform(-26, -4) / 20)
    return np.asarray(level * taken / np.abs(taken).max(), dtype=np.float32)


def _control_tracks(names: list[str], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> dict[str, Floats]:
    """Tracks over C control frames, smoothed across phone boundaries: formants [3, C], others
    [C]."""
    frames = int(ends[-1])
    formants, rows = (
        np.zeros((3, frames)),
        {name: np.zeros(frames) for name in ("voicing", "frication", "centre", "width")},
    )
    last = PHONES["AH"]
    for name, start, end in zip(names, starts, ends, strict=True):
        phone = last._replace(voicing=0.0, frication=0.0, stop=False) if name == "SIL" else PHONES[name]
        formants[:, start:end] = np.array(phone.formants)[:, None]
        for field, row in rows.items():
            row[start:end] = getattr(phone, field)
        if phone.stop:  # closure, then a burst of 15 ms
            burst = max(start, end - 3)
            rows["frication"][start:burst] = 0
            rows["voicing"][start:burst] *= 0.4
        last = phone
    glide = round(_COARTICULATION_SECONDS * _CONTROL_HZ)
    tracks = {"formants": uniform_filter1d(formants, glide, axis=1, mode="nearest")}
    tracks["voicing"] = uniform_filter1d(rows["voicing"], 5, mode="nearest")
    tracks["frication"] = uniform_filter1d(rows["frication"], 2, mode="nearest")
    return tracks | {name: uniform_filter1d(rows[name], 3, mode="nearest") for name in ("centre", "width")}


def _bins() -> Floats:
    return np.asarray(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None], dtype=np.float64)


def _formant_gain(formants: Floats) -> Floats:
    """Product of resonances [bins, C]; bandwidths grow with frequency; a fixed fourth formant
    closes the series."""
    gain = np.broadcast_to(np.sqrt(1 + (_bins() / 500) ** 2), (len(_bins()), formants.shape[1])).copy()  # lip radiation
    for frequency in (*formants, np.full(formants.shape[1], 3500.0)):
        ratio, bandwidth = _bins() / frequency, 50 + 0.04 * frequency
        gain /= np.sqrt((1 - ratio**2) ** 2 + (ratio * bandwidth / frequency) ** 2)
    return np.asarray(gain)


def _band_gain(centre: Floats, width: Floats) -> Floats:
    return np.exp(-(((_bins() - centre) / np.maximum(width, 1.0)) ** 2))


def _shape(source: Floats, gain: Floats) -> Floats:
    """Filters `source` with a time-varying spectral gain, one column per control frame."""
    _, _, spectrum = stft(source, SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    columns = np.minimum(np.arange(spectrum.shape[1]), gain.shape[1] - 1)
    _, shaped = istft(spectrum * gain[:, columns], SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    return np.asarray(shaped[: len(source)])


def write_corpus(folder: Path, *, speakers: int = 12, clips: int = 20, seed: int = 0) -> dict[str, float]:
    """Writes train.zip, test.zip (a quarter of the speakers), labels.tsv and sample.flac; returns
    the hours of each set."""
    held_out = max(1, speakers // 4)
    rows = ["\t".join(("split", "path", "seconds", "speaker", "gender", "words", "phones", "times"))]
    hours: dict[str, float] = {}
    sample = b""
    for split, numbers in (("train", range(speakers - held_out)), ("test", range(speakers - held_out, speakers))):
        seconds = 0.0
        with atomic_path(folder / f"{split}.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for number in numbers:
                voice = speaker(number, seed)
                for clip in range(clips):
                    spoken = utterance(voice, generator(seed, "clip", number, clip))
                    path = f"{voice.name}/{voice.name}_{clip:03d}.flac"
                    content = _flac(spoken.audio)
                    # fixed timestamp: reproducible bytes
                    archive.writestr(zipfile.ZipInfo(path), content)
                    if split == "test" and len(sample) == 0:
                        sample = content
                    rows.append(_row(split, path, voice, spoken))
                    seconds += len(spoken.audio) / SAMPLE_RATE
        hours[split] = seconds / 3600
    write_text(folder / "labels.tsv", "\n".join(rows) + "\n")
    with atomic_path(folder / "sample.flac") as temporary:
        temporary.write_bytes(sample)
    return hours


def _row(split: str, path: str, voice: Speaker, spoken: Utterance) -> str:
    phones = " | ".join(LEXICON[word] for word in spoken.words)
    times = " ".join(f"{name}:{start:.3f}-{end:.3f}" for name, start, end in spoken.phones)
    seconds = f"{len(spoken.audio) / SAMPLE_RATE:.3f}"
    return "\t".join((split, path, seconds, voice.name, voice.gender, " ".join(spoken.words), phones, times))


def _flac(audio: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sjepa.dataset.demo", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", metavar="OUT", type=Path)
    parser.add_argument("--speakers", type=int, default=12)
    parser.add_argument("--clips", type=int, default=20, help="per speaker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.speakers < 2 or options.clips < 1:
        parser.error("needs at least 2 speakers (one is held out for the test set) and 1 clip each")
    hours = write_corpus(options.folder, speakers=options.speakers, clips=options.clips, seed=options.seed)
    print(
        f"{options.folder}: train.zip {hours['train'] * 60:.1f} min, test.zip {hours['test'] * 60:.1f} min, labels.tsv, "
        "sample.flac"
    )


if __name__ == "__main__":
    main()
