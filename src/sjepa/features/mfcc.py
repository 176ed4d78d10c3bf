"""MFCC on the encoder's frames, the features of phase 1. [Phase 1 GMM Fitting]

13 coefficients with deltas and delta-deltas. Reference: librosa's `melspectrogram(htk=True,
norm=None, center=False)`, `power_to_db(top_db=80)`, `mfcc(S=…)` and `delta(width=5,
mode="nearest")` applied twice.

B batch, S samples, T frames.
"""

from __future__ import annotations

import numpy as np
import torch
from librosa import filters  # type: ignore[attr-defined,unused-ignore]
from scipy.fft import dct
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry

_NUM_MEL_BANDS = 23
_NUM_COEFFICIENTS = 13
_POWER_FLOOR = 1e-10
_DYNAMIC_RANGE_DB = 80.0
_DELTA_REACH = 2  # a regression over 5 frames

NUM_FEATURES = 3 * _NUM_COEFFICIENTS


class MFCC(nn.Module):
    """Waveforms to 39 features per frame."""

    window: Tensor
    mel_FM: Tensor
    dct_MC: Tensor

    def __init__(self, geometry: FrameGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        size = geometry.receptive_field_samples
        mel_MF = filters.mel(
            sr=geometry.sample_rate, n_fft=size, n_mels=_NUM_MEL_BANDS, htk=True, norm=None, dtype=np.float32
        )
        dct_CM = dct(np.eye(_NUM_MEL_BANDS), type=2, norm="ortho", axis=0)[:_NUM_COEFFICIENTS]
        self.register_buffer("window", torch.hann_window(size, periodic=True), persistent=False)
        self.register_buffer("mel_FM", torch.from_numpy(mel_MF.T.copy()), persistent=False)
        self.register_buffer("dct_MC", torch.from_numpy(dct_CM.T.astype(np.float32)), persistent=False)

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        """Features [B, T, 39] float32 with T = frames(S); values of padded frames are undefined.

        The 80 dB floor and the edge padding of the deltas are computed per clip from
        `num_samples_B`.
        """
        with torch.autocast(waveform_BS.device.type, enabled=False):
            return self._features(waveform_BS, self.geometry.frames(num_samples_B))

    def _features(self, waveform_BS: Tensor, count_B: Tensor) -> Tensor:
        size, hop = self.geometry.receptive_field_samples, self.geometry.hop_samples
        frames_BTW = waveform_BS.float().unfold(1, size, hop) * self.window
        spectrum_BTF = torch.fft.rfft(frames_BTW)
        power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
        level_BTM = 10 * torch.log10((power_BTF @ self.mel_FM).clamp(min=_POWER_FLOOR))
        step_T = torch.arange(level_BTM.shape[1], device=level_BTM.device)
        real_BT1 = (step_T < count_B[:, None])[..., None]
        loudest_B = level_BTM.masked_fill(~real_BT1, -torch.inf).amax(dim=(1, 2))
        level_BTM = level_BTM.maximum((loudest_B - _DYNAMIC_RANGE_DB)[:, None, None])
        static_BTC = level_BTM @ self.dct_MC
        delta_BTC = _delta(static_BTC, count_B)
        return torch.cat([static_BTC, delta_BTC, _delta(delta_BTC, count_B)], dim=-1)


def _delta(values_BTC: Tensor, count_B: Tensor) -> Tensor:
    """Delta features by regression over 5 frames, with edge padding per clip."""
    step_T = torch.arange(values_BTC.shape[1], device=values_BTC.device)
    last_B1 = (count_B[:, None] - 1).clamp(min=0)

    def shifted(offset: int) -> Tensor:
        index_BT = torch.minimum((step_T + offset).clamp(min=0), last_B1)
        return values_BTC.gather(1, index_BT[..., None].expand(values_BTC.shape))

    weighted = [n * (shifted(n) - shifted(-n)) for n in range(1, _DELTA_REACH + 1)]
    return torch.stack(weighted).sum(0) / (2 * sum(n * n for n in range(1, _DELTA_REACH + 1)))
