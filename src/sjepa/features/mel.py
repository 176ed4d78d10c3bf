"""Log-mel spectrograms for plots, on the encoder's frames. M bands, T frames."""

from __future__ import annotations

import numpy as np
from librosa import feature, power_to_db  # type: ignore[attr-defined,unused-ignore]
from numpy.typing import NDArray

from sjepa.core.frames import FrameGeometry

_NUM_BANDS = 80


def log_mel(waveform: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """[M, T] in dB relative to the maximum, floored at −80."""
    size = geometry.receptive_field_samples
    power_MT = feature.melspectrogram(  # window as long as the receptive field, centred in n_fft
        y=np.pad(waveform, size // 2), sr=geometry.sample_rate, n_fft=2 * size, win_length=size,
        hop_length=geometry.hop_samples, n_mels=_NUM_BANDS, center=False,
    )  # fmt: skip
    return np.asarray(power_to_db(power_MT, ref=np.max, top_db=80.0), dtype=np.float32)
