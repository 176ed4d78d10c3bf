"""Log-mel frontend, an alternative to the learned convolutional frontend. [Architecture Details]

Two windows of 15 ms with a hop of 10 ms cover exactly the samples of a frame; the 40 log-mel bands
of both are concatenated to 80 features. Reference: librosa's `melspectrogram(n_fft=512,
win_length=240, hop_length=160, n_mels=40, htk=True, norm=None, center=False)`.

B batch, S samples, T frames, W samples per window, F frequencies, M bands, C features per frame
(2 M).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from librosa import filters  # type: ignore[attr-defined,unused-ignore]
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry

NUM_BANDS = 40
STEPS = 2  # windows per frame
POWER_FLOOR = 1e-8  # about the 16-bit quantisation noise in a band
LEAST_DEVIATION = 1e-3

MelStatistics = Literal["corpus", "clip", "both"]


def window_samples(geometry: FrameGeometry) -> int:
    """Window length in samples: `STEPS` windows cover exactly one frame."""
    return geometry.receptive_field_samples - (STEPS - 1) * geometry.hop_samples // STEPS


def fft_samples(geometry: FrameGeometry) -> int:
    """FFT size: twice the next power of two of the window length."""
    return 2 << (window_samples(geometry) - 1).bit_length()


class BandMoments(NamedTuple):
    """Per-clip mean and standard deviation of every band."""

    mean_B1C: Tensor
    deviation_B1C: Tensor


class MelFrontend(nn.Module):
    """Waveforms to normalised log-mel frames. `statistics`: "corpus" normalises by mean and
    standard deviation of the training set (`mean_C`, `deviation_C`, measured once); "clip" by those
    of each clip; "both" concatenates the two (the first keeps speaker information, the second the
    content)."""

    mean_C: Tensor
    deviation_C: Tensor
    window: Tensor
    spectrum_WF: Tensor
    mel_FM: Tensor

    def __init__(self, *, statistics: MelStatistics, geometry: FrameGeometry) -> None:
        super().__init__()
        self.geometry, self.mel_statistics = geometry, statistics
        self._bands = STEPS * NUM_BANDS
        self.num_channels = self._bands * (2 if statistics == "both" else 1)
        size, fft = window_samples(geometry), fft_samples(geometry)
        angle_WF = 2 * np.pi * np.outer(np.arange(size), np.arange(fft // 2 + 1)) / fft
        window_W = torch.hann_window(size, periodic=True, dtype=torch.float64)
        waves_WF = torch.from_numpy(np.concatenate([np.cos(angle_WF), np.sin(angle_WF)], axis=1))
        mel_MF = filters.mel(
            sr=geometry.sample_rate, n_fft=fft, n_mels=NUM_BANDS, htk=True, norm=None, dtype=np.float32
        )
        self.register_buffer("mean_C", torch.zeros(self._bands))
        self.register_buffer("deviation_C", torch.ones(self._bands))
        self.register_buffer("window", window_W.float(), persistent=False)
        self.register_buffer("spectrum_WF", (window_W[:, None] * waves_WF).float(), persistent=False)
        self.register_buffer("mel_FM", torch.from_numpy(mel_MF.T.copy()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follows device moves but stays float32: power exceeds the range of half precision."""
        return super()._apply(
            lambda tensor: fn(tensor) if tensor.is_meta else tensor.to(fn(tensor[:0]).device), recurse
        )

    @property
    def hop_samples(self) -> int:
        """Hop between windows in samples."""
        return self.geometry.hop_samples // STEPS

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: BandMoments | None = None) -> Tensor:
        """Features [B, T, num_channels] float32. Padding does not affect the frames of a clip.
        `statistics`: used instead of the clip's own."""
        return self.normalised(self.levels(waveform_BS), num_samples_B, statistics)

    def normalised(self, level_BTC: Tensor, num_samples_B: Tensor, statistics: BandMoments | None = None) -> Tensor:
        """Normalises log-mel levels, as in `forward`."""
        forms = []
        if self.mel_statistics != "clip":
            forms.append((level_BTC - self.mean_C) / self.deviation_C)
        if self.mel_statistics != "corpus":
            own = statistics or self.moments(level_BTC, num_samples_B)
            forms.append((level_BTC - own.mean_B1C) / own.deviation_B1C)
        return torch.cat(forms, dim=-1)

    @torch.no_grad()
    def levels(self, waveform_BS: Tensor) -> Tensor:
        """Unnormalised natural-log mel power [B, T, C] float32."""
        with torch.autocast(waveform_BS.device.type, enabled=False):
            windows_BNW = waveform_BS.float().unfold(1, len(self.window), self.hop_samples)
            spectrum_BNF = torch.fft.rfft(windows_BNW * self.window, n=fft_samples(self.geometry))
            power_BNM = (spectrum_BNF.real.square() + spectrum_BNF.imag.square()) @ self.mel_FM
            return self.stacked(power_BNM.clamp(min=POWER_FLOOR).log(), self.geometry.frames(waveform_BS.shape[1]))

    def stacked(self, level_BNM: Tensor, frames: int) -> Tensor:
        """Concatenates the windows of each frame, [B, T, C]."""
        return level_BNM[:, : STEPS * frames].reshape(level_BNM.shape[0], frames, self._bands)

    def moments(self, level_BTC: Tensor, num_samples_B: Tensor) -> BandMoments:
        """Mean and standard deviation over each clip's unpadded frames."""
        step_T = torch.arange(level_BTC.shape[1], device=level_BTC.device)
        count_B = self.geometry.frames(num_samples_B)
        real_BT1 = (step_T < count_B[:, None])[..., None]
        count_B11 = count_B[:, None, None].clamp(min=1)
        mean_B1C = (level_BTC * real_BT1).sum(1, keepdim=True) / count_B11
        square_B1C = ((level_BTC - mean_B1C) * real_BT1).square().sum(1, keepdim=True) / count_B11
        return BandMoments(mean_B1C, square_B1C.sqrt().clamp(min=LEAST_DEVIATION))

    @torch.no_grad()
    def measure(self, level_NC: Tensor) -> None:
        """Sets the corpus mean and standard deviation from a sample of frames."""
        self.mean_C.copy_(level_NC.mean(0))
        self.deviation_C.copy_(level_NC.std(0, correction=0).clamp(min=LEAST_DEVIATION))
