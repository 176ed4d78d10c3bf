"""Audio files, written atomically. S samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.dataset.audio import Waveform

KINDS = {".wav": "WAV", ".flac": "FLAC"}


class AudioFile:
    """An open file; `peak`: largest absolute sample given so far, of which those above 1 are
    clipped."""

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file, self.peak = file, 0.0

    def write(self, waveform_S: Waveform) -> None:
        self.peak = max(self.peak, float(np.abs(waveform_S).max(initial=0.0)))
        self._file.write(waveform_S.clip(-1, 1))


@contextmanager
def audio_file(path: Path, sample_rate: int) -> Iterator[AudioFile]:
    """A 16-bit mono file, by its ending WAV or FLAC, which exists once it is complete. Raises
    UserError if it cannot be written."""
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                temporary, "w", sample_rate, 1, "PCM_16", format=KINDS[path.suffix.lower()]
            ) as file:
                yield AudioFile(file)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: cannot be written ({error.error_string})") from error


def write_audio(path: Path, waveform_S: Waveform, sample_rate: int) -> None:
    """Raises UserError."""
    with audio_file(path, sample_rate) as file:
        file.write(waveform_S)
