"""Losses of reconstructed audio. B batch, S samples, T frames, F frequencies, M mel bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from librosa import filters  # type: ignore[attr-defined,unused-ignore]
from torch import Tensor, nn

from sjepa.tokenizer.modules.discriminators import Judged
from sjepa.tokenizer.modules.lengths import real_steps

WINDOWS = (2048, 1024, 512, 256, 128)  # samples
MEL_BANDS, MEL_WINDOW = 80, 1024
_LEAST_MAGNITUDE = 1e-5


def waveform_error(found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> Tensor:
    """Mean absolute difference of the real samples. `length_B`: of each clip; None: all."""
    real = real_steps(length_B, wanted_BS[:, None])
    return real.keep((found_BS.float() - wanted_BS)[:, None]).abs().sum() / real.count_B1.sum()


class Spectra(nn.Module):
    """Magnitudes of a Hann-windowed STFT, hop a quarter of the window; of mel bands, if given."""

    window_W: Tensor
    mel_MF: Tensor | None

    def __init__(self, size: int, *, mel_bands: int = 0, sample_rate: int = 0) -> None:
        super().__init__()
        self.size = size
        mel = torch.from_numpy(filters.mel(sr=sample_rate, n_fft=size, n_mels=mel_bands)) if mel_bands else None
        self.register_buffer("window_W", torch.hann_window(size), persistent=False)
        self.register_buffer("mel_MF", mel, persistent=False)

    def frames(self, samples: Tensor) -> Tensor:
        """Those whose centre is not beyond the end of a clip of so many samples."""
        return samples // (self.size // 4) + 1

    def forward(self, audio_BS: Tensor) -> Tensor:
        """[B, F or M, T], at least 1e-5."""
        audio_BS, hop = audio_BS.float(), self.size // 4
        spectrum_BFT = torch.stft(
            audio_BS, self.size, hop, window=self.window_W, pad_mode="constant", return_complex=True
        )
        power_BFT = spectrum_BFT.real.square() + spectrum_BFT.imag.square()
        magnitude_BFT = power_BFT.clamp(min=_LEAST_MAGNITUDE**2).sqrt()  # the root has no gradient at 0
        return magnitude_BFT if self.mel_MF is None else (self.mel_MF @ magnitude_BFT).clamp(min=_LEAST_MAGNITUDE)


class SpectralLoss(nn.Module):
    """Mean absolute difference of magnitudes plus that of their natural logarithms, averaged over
    window sizes."""

    def __init__(self, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(Spectra(size) for size in windows)

    def forward(self, found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> Tensor:
        total = torch.zeros((), device=wanted_BS.device)
        for spectra in self.spectra:
            found_BFT, wanted_BFT = spectra(found_BS), spectra(wanted_BS)
            error_BFT = (found_BFT - wanted_BFT).abs() + (found_BFT.log() - wanted_BFT.log()).abs()
            total = total + _mean(error_BFT, spectra, length_B)
        return total / len(self.spectra)


class MelDistance(nn.Module):
    """Mean absolute difference of the natural logarithms of 80 mel bands (window 1,024)."""

    def __init__(self, sample_rate: int, *, bands: int = MEL_BANDS, size: int = MEL_WINDOW) -> None:
        super().__init__()
        self.spectra = Spectra(size, mel_bands=bands, sample_rate=sample_rate)

    def forward(self, found_BS: Tensor, wanted_BS: Tensor, length_B: Tensor | None) -> Tensor:
        error_BMT = (self.spectra(found_BS).log() - self.spectra(wanted_BS).log()).abs()
        return _mean(error_BMT, self.spectra, length_B)


def _mean(error_BFT: Tensor, spectra: Spectra | nn.Module, length_B: Tensor | None) -> Tensor:
    """Over the frames of real audio."""
    assert isinstance(spectra, Spectra)
    real = real_steps(None if length_B is None else spectra.frames(length_B), error_BFT)
    return real.keep(error_BFT).sum() / (real.count_B1.sum() * error_BFT.shape[1])


def judges_loss(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """Of the discriminators, by least squares: 1 for what is real, 0 for what the decoder made."""
    return torch.stack(
        [
            own.mean((1 - own.scores.float()).square(), 0) + other.mean(other.scores.float().square(), 0)
            for own, other in zip(real, made, strict=True)
        ]
    ).sum()


def adversarial_loss(made: Sequence[Judged]) -> Tensor:
    """Of the decoder, by least squares."""
    return torch.stack([own.mean((1 - own.scores.float()).square(), 0) for own in made]).sum()


def feature_loss(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """Mean absolute difference of the discriminators' features, summed over layers."""
    return torch.stack(
        [
            one.mean((own.detach().float() - other.float()).abs(), place)
            for one, two in zip(real, made, strict=True)
            for place, (own, other) in enumerate(zip(one.features, two.features, strict=True), start=1)
        ]
    ).sum()
