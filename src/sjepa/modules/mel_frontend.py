"""The log-mel frontend: a spectrum that is known, in place of convolutions that have to learn one. [Architecture Details]

Two windows of 15 ms, 10 ms apart, cover exactly the samples of a frame; their 40 log-mel bands each, one after the other,
are its 80 channels. Reference: librosa's `melspectrogram(n_fft=512, win_length=240, hop_length=160, n_mels=40, htk=True,
norm=None, center=False)`.

B batch, S samples, T frames, W samples of a window, F frequencies, M bands, C channels (2 M).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from librosa import filters  # type: ignore[attr-defined,unused-ignore]
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry

NUM_BANDS = 40
_STEPS = 2  # in a frame
_FFT_SAMPLES = 512
_POWER_FLOOR = 1e-8  # about what the rounding of 16-bit samples has in a band
_LEAST_DEVIATION = 1e-3

MelStatistics = Literal["corpus", "clip"]


class BandMoments(NamedTuple):
    """Mean and deviation of every band, [B, 1, C] or [C]."""

    mean: Tensor
    deviation: Tensor


class MelFrontend(nn.Module):
    """Waveforms to normalised log-mel frames. `mean_C` and `deviation_C` are the corpus' own, which training measures once;
    with `statistics="clip"` every clip is brought to zero mean and unit deviation by itself."""

    mean_C: Tensor
    deviation_C: Tensor
    spectrum_WF: Tensor
    mel_FM: Tensor

    def __init__(self, *, statistics: MelStatistics, geometry: FrameGeometry) -> None:
        super().__init__()
        self.geometry, self.mel_statistics = geometry, statistics
        self.num_channels = _STEPS * NUM_BANDS
        size = geometry.receptive_field_samples - (_STEPS - 1) * self._hop
        angle_WF = 2 * np.pi * np.outer(np.arange(size), np.arange(_FFT_SAMPLES // 2 + 1)) / _FFT_SAMPLES
        window_W1 = torch.hann_window(size, periodic=True, dtype=torch.float64)[:, None]
        waves_WF = torch.from_numpy(np.concatenate([np.cos(angle_WF), np.sin(angle_WF)], axis=1))
        mel_MF = filters.mel(
            sr=geometry.sample_rate, n_fft=_FFT_SAMPLES, n_mels=NUM_BANDS, htk=True, norm=None, dtype=np.float32
        )
        self.register_buffer("mean_C", torch.zeros(self.num_channels))
        self.register_buffer("deviation_C", torch.ones(self.num_channels))
        self.register_buffer("spectrum_WF", (window_W1 * waves_WF).float(), persistent=False)
        self.register_buffer("mel_FM", torch.from_numpy(mel_MF.T.copy()), persistent=False)

    @property
    def _hop(self) -> int:
        return self.geometry.hop_samples // _STEPS

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: BandMoments | None = None) -> Tensor:
        """Features [B, T, C] float32. What lies beyond a clip's samples changes nothing of its frames; `statistics` replaces
        the clip's own or the corpus'."""
        level_BTC = self.levels(waveform_BS)
        if statistics is None:
            own = self.mel_statistics == "clip"
            statistics = self.moments(level_BTC, num_samples_B) if own else BandMoments(self.mean_C, self.deviation_C)
        return (level_BTC - statistics.mean) / statistics.deviation

    @torch.no_grad()
    def levels(self, waveform_BS: Tensor) -> Tensor:
        """Natural logarithms of the power in each band [B, T, C] float32, before any normalisation."""
        with torch.autocast(waveform_BS.device.type, enabled=False):
            windows_BNW = waveform_BS.float().unfold(1, self.spectrum_WF.shape[0], self._hop)
            real_BNF, imaginary_BNF = (windows_BNW @ self.spectrum_WF).chunk(2, dim=-1)
            power_BNM = (real_BNF.square() + imaginary_BNF.square()) @ self.mel_FM
            frames = self.geometry.frames(waveform_BS.shape[1])
            level_BNM = power_BNM.clamp(min=_POWER_FLOOR).log()[:, : _STEPS * frames]
        return level_BNM.reshape(len(waveform_BS), frames, self.num_channels)

    def moments(self, level_BTC: Tensor, num_samples_B: Tensor) -> BandMoments:
        """Of each clip's own frames."""
        step_T = torch.arange(level_BTC.shape[1], device=level_BTC.device)
        count_B = self.geometry.frames(num_samples_B)
        real_BT1 = (step_T < count_B[:, None])[..., None]
        count_B11 = count_B[:, None, None].clamp(min=1)
        mean_B1C = (level_BTC * real_BT1).sum(1, keepdim=True) / count_B11
        square_B1C = ((level_BTC - mean_B1C) * real_BT1).square().sum(1, keepdim=True) / count_B11
        return BandMoments(mean_B1C, square_B1C.sqrt().clamp(min=_LEAST_DEVIATION))

    @torch.no_grad()
    def measure(self, level_NC: Tensor) -> None:
        """Takes the corpus' mean and deviation from frames of it."""
        self.mean_C.copy_(level_NC.mean(0))
        self.deviation_C.copy_(level_NC.std(0, correction=0).clamp(min=_LEAST_DEVIATION))
