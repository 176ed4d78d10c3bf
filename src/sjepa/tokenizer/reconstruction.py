"""Losses of reconstructed audio. B batch, S samples, T frames, F frequencies, M mel bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from librosa import filters  # type: ignore[attr-defined,unused-ignore]
from torch import Tensor, nn

from sjepa.tokenizer.modules.discriminators import Judged
from sjepa.tokenizer.modules.lengths import real_steps

WINDOWS = (2048, 1024, 512, 256, 128)  # samples
_LEAST_MAGNITUDE = 1e-5


def waveform_error(found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> Tensor:
    """Mean absolute difference of the real samples. `length_B`: of each clip; None: all."""
    real = real_steps(length_B, wanted_BS[:, None])
    return real.keep((found_BS.float() - wanted_BS)[:, None]).abs().sum() / real.count_B1.sum()


class SpectralLoss(nn.Module):
    """Mean absolute difference of magnitudes plus that of log magnitudes (natural), averaged over
    window sizes; hop a quarter of the window. Frames whose centre is beyond a clip's end do not
    count. With `mel_bands`: of mel bands instead of frequencies."""

    def __init__(self, windows: Sequence[int] = WINDOWS, *, mel_bands: int = 0, sample_rate: int = 24000) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for size in self.windows:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
            if mel_bands:
                bands_MF = filters.mel(sr=sample_rate, n_fft=size, n_mels=mel_bands)
                self.register_buffer(f"mel_{size}", torch.from_numpy(bands_MF), persistent=False)

    def magnitudes(self, audio_BS: Tensor, size: int) -> Tensor:
        """[B, F or M, T], at least 1e-5."""
        spectrum_BFT = torch.stft(
            audio_BS.float(),
            size,
            size // 4,
            window=getattr(self, f"window_{size}"),
            pad_mode="constant",
            return_complex=True,
        )
        power_BFT = spectrum_BFT.real.square() + spectrum_BFT.imag.square()
        magnitude_BFT = power_BFT.clamp(min=_LEAST_MAGNITUDE**2).sqrt()  # the root has no gradient at 0
        mel_MF = getattr(self, f"mel_{size}", None)
        return magnitude_BFT if mel_MF is None else (mel_MF @ magnitude_BFT).clamp(min=_LEAST_MAGNITUDE)

    def forward(self, found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> Tensor:
        total = torch.zeros((), device=wanted_BS.device)
        for size in self.windows:
            found_BFT, wanted_BFT = self.magnitudes(found_BS, size), self.magnitudes(wanted_BS, size)
            frames_B = None if length_B is None else length_B // (size // 4) + 1
            real = real_steps(frames_B, wanted_BFT)
            error_BFT = (found_BFT - wanted_BFT).abs() + (found_BFT.log() - wanted_BFT.log()).abs()
            total = total + real.keep(error_BFT).sum() / (real.count_B1.sum() * wanted_BFT.shape[1])
        return total / len(self.windows)


def judges_loss(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """Of the discriminators, by least squares: 1 for what is real, 0 for what the decoder made."""
    return torch.stack(
        [
            (1 - own.scores.float()).square().mean() + other.scores.float().square().mean()
            for own, other in zip(real, made, strict=True)
        ]
    ).sum()


def adversarial_loss(made: Sequence[Judged]) -> Tensor:
    """Of the decoder, by least squares."""
    return torch.stack([(1 - own.scores.float()).square().mean() for own in made]).sum()


def feature_loss(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """Mean absolute difference of the discriminators' features, summed over layers."""
    return torch.stack(
        [
            (own.detach().float() - other.float()).abs().mean()
            for one, two in zip(real, made, strict=True)
            for own, other in zip(one.features, two.features, strict=True)
        ]
    ).sum()
