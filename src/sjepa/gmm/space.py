"""Feature space of a mixture: normalisation, splicing, LDA projection and posterior temperature.

Speaker and channel shift all frames of a clip, and without normalisation the mixture models these
shifts (ZeroSpeech 2017; van Niekerk et al. 2021). Spliced frames separate phones better than single
ones when projected by LDA on the classes of a first clustering (Heck et al. 2016). In many
correlated dimensions a diagonal mixture is overconfident, as it assumes independence; a temperature
calibrates the posteriors.

B batch, T frames, N frames of a sample, D features of the source, C spliced ones, E projected ones,
K components, S speakers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sjepa.core.ranks import Ranks
from sjepa.gmm.diagonal import DiagonalGMM

Normalisation = Literal["none", "clip", "speaker"]

_LEAST_DEVIATION = 1e-5
_RIDGE = 1e-3  # relative to the mean within-cluster variance
_TEMPERATURES = (1.0, 1e3)
_BISECTIONS = 30
_TEMPERED_FRAMES = 20_000  # used to fit the temperature
_FEWEST_FRAMES = 100  # per speaker, for speaker statistics


@dataclass(frozen=True)
class SpaceSettings:
    """`normalise`: by mean and standard deviation of each clip ("clip") or of its speaker
    ("speaker"); `context`: frames spliced on each side; `dimensions`: LDA dimensions, None: no
    projection; `entropy_bits`: mean entropy of the targets, reached by a temperature, None: no
    temperature."""

    normalise: Normalisation = "none"
    context: int = 0
    dimensions: int | None = None
    entropy_bits: float | None = None

    def width(self, source: int) -> int:
        """Dimension of the mixture for `source` input features."""
        return self.dimensions or source * (2 * self.context + 1)

    def describe(self, source: str) -> str:
        """Feature name stored in the mixture's file."""
        parts = [source]
        if self.normalise != "none":
            parts.append(f"by {self.normalise}")
        if self.context:
            parts.append(f"±{self.context}")
        if self.dimensions is not None:
            parts.append(f"LDA {self.dimensions}")
        return ", ".join(parts)


AS_THEY_ARE = SpaceSettings()


class MixtureSpace(nn.Module):
    """Maps source features to mixture features. Speaker statistics, projection and temperature are
    fitted and stored as buffers."""

    centre_C: Tensor
    basis_CE: Tensor
    temperature: Tensor
    speaker_S: Tensor
    speaker_mean_SD: Tensor
    speaker_deviation_SD: Tensor

    def __init__(self, settings: SpaceSettings, source: int, *, speakers: Sequence[int] = ()) -> None:
        """`source`: input features per frame. `speakers`: keys, for speaker normalisation."""
        super().__init__()
        self.settings, self.source = settings, source
        self.spliced = spliced = source * (2 * settings.context + 1)
        projected = settings.dimensions or 0
        if projected > spliced:
            raise ValueError(f"{projected} directions of {spliced}")
        self.register_buffer("centre_C", torch.zeros(spliced if projected else 0))
        self.register_buffer("basis_CE", torch.zeros(spliced if projected else 0, projected))
        self.register_buffer("temperature", torch.ones(()))
        if self.is_by_speaker:
            self.register_buffer("speaker_S", torch.tensor(sorted(speakers), dtype=torch.int64))
            self.register_buffer("speaker_mean_SD", torch.zeros(len(speakers), source))
            # 0: no statistics
            self.register_buffer("speaker_deviation_SD", torch.zeros(len(speakers), source))

    def frames(self, x_BTD: Tensor, count_B: Tensor, speaker_B: Tensor | None = None) -> Tensor:
        """Normalised and spliced frames before projection, [B, T, C] float32. Uses only the
        `count_B` unpadded frames of a clip, with edge padding. `speaker_B`: speaker keys; clips of
        speakers without statistics are normalised per clip."""
        x_BTD = x_BTD.float()
        if self.settings.normalise != "none":
            mean_B1D, deviation_B1D = _clip_moments(x_BTD, count_B)
            if self.is_by_speaker and speaker_B is not None:
                mean_B1D, deviation_B1D = self._speaker_moments(speaker_B, mean_B1D, deviation_B1D)
            x_BTD = (x_BTD - mean_B1D) / deviation_B1D.clamp(min=_LEAST_DEVIATION)
        return _spliced(x_BTD, count_B, self.settings.context) if self.settings.context else x_BTD

    def project(self, x_NC: Tensor) -> Tensor:
        """LDA projection, [N, C] → [N, E]; identity without projection."""
        if not self.projects:
            return x_NC
        with torch.autocast(x_NC.device.type, enabled=False):
            return (x_NC - self.centre_C) @ self.basis_CE

    @property
    def projects(self) -> bool:
        return self.settings.dimensions is not None

    @property
    def is_by_speaker(self) -> bool:
        return self.settings.normalise == "speaker"

    def _speaker_moments(self, speaker_B: Tensor, mean_B1D: Tensor, deviation_B1D: Tensor) -> tuple[Tensor, Tensor]:
        """Speaker statistics; the given clip statistics for speakers without statistics."""
        number_B = self.speaker_number(speaker_B, len(speaker_B))
        deviation_BD = self.speaker_deviation_SD[number_B]
        known_B11 = ((number_B >= 0) & (deviation_BD > 0).any(1))[:, None, None]
        mean_B1D = torch.where(known_B11, self.speaker_mean_SD[number_B][:, None], mean_B1D)
        return mean_B1D, torch.where(known_B11, deviation_BD[:, None], deviation_B1D)

    def speaker_number(self, speaker_B: Tensor | None, clips: int) -> Tensor:
        """Indices of speaker keys in `speaker_S`, −1 if not present, [B]."""
        if speaker_B is None or not len(self.speaker_S):
            return torch.full((clips,), -1, device=self.speaker_S.device)
        number_B = torch.searchsorted(self.speaker_S, speaker_B).clamp(max=len(self.speaker_S) - 1)
        return torch.where(self.speaker_S[number_B] == speaker_B, number_B, -1)

    @torch.no_grad()
    def measure_speakers(self, x_ND: Tensor, number_N: Tensor, ranks: Ranks) -> int:
        """Computes mean and standard deviation per speaker from source frames and their speaker
        indices. Returns the number of speakers with statistics; the others have too few frames."""
        x_ND, number_N = x_ND.cpu(), number_N.cpu()  # float64 sums, not supported on every device
        wide_ND, index_N = x_ND[number_N >= 0].double(), number_N[number_N >= 0]
        count_S, sum_SD = wide_ND.new_zeros(len(self.speaker_S)), wide_ND.new_zeros(self.speaker_mean_SD.shape)
        square_SD = torch.zeros_like(sum_SD)
        for total, values in ((count_S, torch.ones_like(wide_ND[:, 0])), (sum_SD, wide_ND), (square_SD, wide_ND**2)):
            total.index_add_(0, index_N, values)
        ranks.add_up(count_S, sum_SD, square_SD)
        count_S1 = count_S[:, None].clamp(min=1)
        mean_SD = sum_SD / count_S1
        deviation_SD = (square_SD / count_S1 - mean_SD**2).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
        known_S = count_S >= _FEWEST_FRAMES
        self.speaker_mean_SD.copy_(mean_SD)
        self.speaker_deviation_SD.copy_(deviation_SD * known_S[:, None])
        return int(known_S.sum())

    @property
    def is_tempered(self) -> bool:
        return self.settings.entropy_bits is not None

    def posteriors(self, gmm: DiagonalGMM, x_NE: Tensor) -> Tensor:
        """Soft targets of projected frames, with temperature, [N, K]."""
        temperature = self.temperature if self.is_tempered else None
        return gmm.posteriors(x_NE, temperature=temperature).responsibilities_NK

    def centre_frame(self, x_NC: Tensor) -> Tensor:
        """The centre frame of spliced frames, [N, D]."""
        width = x_NC.shape[1] // (2 * self.settings.context + 1)
        return x_NC[:, self.settings.context * width :][:, :width]

    @torch.no_grad()
    def fit_projection(self, x_NC: Tensor, cluster_NK: Tensor, ranks: Ranks) -> None:
        """Linear discriminant analysis: maximises between-cluster over within-cluster variance,
        with within-cluster whitening. `cluster_NK`: soft cluster assignments of the frames."""
        wide_NC, share_NK = x_NC.double(), cluster_NK.double()
        moments = [wide_NC.sum(0), wide_NC.T @ wide_NC, share_NK.T @ wide_NC, share_NK.sum(0)]
        count = torch.tensor(float(len(wide_NC)), dtype=torch.float64, device=x_NC.device)
        ranks.add_up(*moments, count)
        centre_C, square_CC, sum_KC, mass_K = moments[0] / count, moments[1] / count, moments[2], moments[3]
        total_CC = square_CC - torch.outer(centre_C, centre_C)
        means_KC = sum_KC / mass_K.clamp(min=1e-9)[:, None] - centre_C
        between_CC = (means_KC.T * mass_K) @ means_KC / count
        within_CC = total_CC - between_CC
        ridge = _RIDGE * within_CC.diagonal().mean()
        factor_CC = torch.linalg.cholesky(within_CC + ridge * torch.eye(len(centre_C)).to(within_CC))
        inverse_CC = torch.linalg.inv(factor_CC)
        _, vectors_CC = torch.linalg.eigh(inverse_CC @ between_CC @ inverse_CC.T)  # ascending
        basis_CE = inverse_CC.T @ vectors_CC[:, -self.basis_CE.shape[1] :]
        sign_E = basis_CE.gather(0, basis_CE.abs().argmax(0, keepdim=True)).sign()
        # floating-point results may differ between machines
        self.basis_CE.copy_(ranks.from_main((basis_CE * sign_E).float().cpu()))
        self.centre_C.copy_(ranks.from_main(centre_C.float().cpu()))

    @torch.no_grad()
    def fit_temperature(self, gmm: DiagonalGMM, x_NE: Tensor, ranks: Ranks) -> None:
        """Fits the temperature to the target mean entropy by bisection; 1 if already higher."""
        wanted = self.settings.entropy_bits
        if wanted is None:
            return
        x_NE = x_NE[:_TEMPERED_FRAMES]
        low, high = (math.log(bound) for bound in _TEMPERATURES)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            posteriors = gmm.posteriors(x_NE, temperature=torch.tensor(math.exp(middle)).to(x_NE))
            sums = torch.stack([torch.special.entr(posteriors.responsibilities_NK).sum(), x_NE.new_tensor(len(x_NE))])
            sums = sums.double()
            ranks.add_up(sums)
            bits = float(sums[0] / sums[1].clamp(min=1)) / math.log(2)
            low, high = (middle, high) if bits < wanted else (low, middle)
        self.temperature.fill_(math.exp(low))


def _clip_moments(x_BTD: Tensor, count_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each clip's unpadded frames, [B, 1, D]."""
    real_BT1 = (torch.arange(x_BTD.shape[1], device=x_BTD.device) < count_B[:, None])[..., None]
    count_B11 = count_B[:, None, None].clamp(min=1)
    mean_B1D = x_BTD.masked_fill(~real_BT1, 0).sum(1, keepdim=True) / count_B11
    variance_B1D = (x_BTD - mean_B1D).masked_fill(~real_BT1, 0).square().sum(1, keepdim=True) / count_B11
    return mean_B1D, variance_B1D.sqrt()


def _spliced(x_BTD: Tensor, count_B: Tensor, reach: int) -> Tensor:
    """Every frame with `reach` neighbours on each side, [B, T, (2·reach + 1)·D]."""
    step_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    last_B1 = (count_B[:, None] - 1).clamp(min=0)
    parts = []
    for offset in range(-reach, reach + 1):
        index_BT = torch.minimum((step_T + offset).clamp(min=0), last_B1)
        parts.append(x_BTD.gather(1, index_BT[..., None].expand(x_BTD.shape)))
    return torch.cat(parts, dim=-1)
