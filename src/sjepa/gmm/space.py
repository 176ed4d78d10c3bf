"""What a mixture is over: the frames of a source, and what is done to them before they are clustered.

Speaker and channel move all frames of a clip alike, and a mixture spends its components on that unless it is taken out
(ZeroSpeech 2017; van Niekerk et al. 2021). Neighbouring frames tell phones apart better than one, if a linear
discriminant analysis on a first clustering says which of their directions matter (Heck et al. 2016). And in many
dimensions a diagonal mixture is sure of everything, since it counts what correlated dimensions say as often as they say it;
a temperature puts that right.

B batch, T frames, N frames of a sample, D features of the source, C spliced ones, E projected ones, K components,
S speakers.
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
_RIDGE = 1e-3  # of the mean variance within clusters
_TEMPERATURES = (1.0, 1e3)
_BISECTIONS = 30
_TEMPERED_FRAMES = 20_000  # that a temperature is chosen on
_FEWEST_FRAMES = 100  # of a speaker, to know mean and deviation by


@dataclass(frozen=True)
class SpaceSettings:
    """`normalise`: clip takes each clip's mean and deviation out, speaker those of all that its speaker says; `context`:
    frames on each side that are spliced to a frame; `dimensions`: how many directions are kept, None for all;
    `entropy_bits`: the mean entropy that targets are given by a temperature, None for the mixture's own posteriors."""

    normalise: Normalisation = "none"
    context: int = 0
    dimensions: int | None = None
    entropy_bits: float | None = None

    def width(self, source: int) -> int:
        """Features that the mixture is over, where the source has `source`."""
        return self.dimensions or source * (2 * self.context + 1)

    def describe(self, source: str) -> str:
        """How the mixture's file names its features."""
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
    """Frames to what the mixture sees. What speakers are like, the projection and the temperature are fitted, and are
    buffers."""

    centre_C: Tensor
    basis_CE: Tensor
    temperature: Tensor
    speaker_S: Tensor
    speaker_mean_SD: Tensor
    speaker_deviation_SD: Tensor

    def __init__(self, settings: SpaceSettings, source: int, *, speakers: Sequence[int] = ()) -> None:
        """`source`: features of a frame. `speakers`: keys of those that may become known, where it is by speaker."""
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
            self.register_buffer("speaker_deviation_SD", torch.zeros(len(speakers), source))  # 0: not known

    def frames(self, x_BTD: Tensor, count_B: Tensor, speaker_B: Tensor | None = None) -> Tensor:
        """Normalised and spliced, not yet projected [B, T, C] float32. Only a clip's own `count_B` frames enter; at its ends
        the first and the last are repeated. `speaker_B`: keys; a clip of a speaker who is not known is normalised by
        itself."""
        x_BTD = x_BTD.float()
        if self.settings.normalise != "none":
            mean_B1D, deviation_B1D = _clip_moments(x_BTD, count_B)
            if self.is_by_speaker and speaker_B is not None:
                mean_B1D, deviation_B1D = self._speaker_moments(speaker_B, mean_B1D, deviation_B1D)
            x_BTD = (x_BTD - mean_B1D) / deviation_B1D.clamp(min=_LEAST_DEVIATION)
        return _spliced(x_BTD, count_B, self.settings.context) if self.settings.context else x_BTD

    def project(self, x_NC: Tensor) -> Tensor:
        """[N, C] → [N, E]"""
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
        """Those of the speakers; the given ones of clips whose speaker is not known."""
        number_B = self.speaker_number(speaker_B, len(speaker_B))
        deviation_BD = self.speaker_deviation_SD[number_B]
        known_B11 = ((number_B >= 0) & (deviation_BD > 0).any(1))[:, None, None]
        mean_B1D = torch.where(known_B11, self.speaker_mean_SD[number_B][:, None], mean_B1D)
        return mean_B1D, torch.where(known_B11, deviation_BD[:, None], deviation_B1D)

    def speaker_number(self, speaker_B: Tensor | None, clips: int) -> Tensor:
        """The positions of keys in `speaker_S`, −1 of those that are not there, [B]."""
        if speaker_B is None or not len(self.speaker_S):
            return torch.full((clips,), -1, device=self.speaker_S.device)
        number_B = torch.searchsorted(self.speaker_S, speaker_B).clamp(max=len(self.speaker_S) - 1)
        return torch.where(self.speaker_S[number_B] == speaker_B, number_B, -1)

    @torch.no_grad()
    def measure_speakers(self, x_ND: Tensor, number_N: Tensor, ranks: Ranks) -> int:
        """Takes mean and deviation of every speaker from frames of the source, with the number of who speaks in each. How
        many speakers are known then; the others have too few frames."""
        x_ND, number_N = x_ND.cpu(), number_N.cpu()  # sums in float64, which not every device has
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
        """The soft targets of projected frames, [N, K]."""
        temperature = self.temperature if self.is_tempered else None
        return gmm.posteriors(x_NE, temperature=temperature).responsibilities_NK

    def centre_frame(self, x_NC: Tensor) -> Tensor:
        """Of spliced frames the one in the middle, [N, D]."""
        width = x_NC.shape[1] // (2 * self.settings.context + 1)
        return x_NC[:, self.settings.context * width :][:, :width]

    @torch.no_grad()
    def fit_projection(self, x_NC: Tensor, cluster_NK: Tensor, ranks: Ranks) -> None:
        """Linear discriminant analysis: the directions that separate clusters most against the spread within them, which
        become uncorrelated with unit variance within clusters. `cluster_NK`: how much of a frame belongs to each."""
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
        self.basis_CE.copy_(ranks.from_main((basis_CE * sign_E).float().cpu()))  # the last bits may differ
        self.centre_C.copy_(ranks.from_main(centre_C.float().cpu()))

    @torch.no_grad()
    def fit_temperature(self, gmm: DiagonalGMM, x_NE: Tensor, ranks: Ranks) -> None:
        """The temperature at which the targets of these frames have the mean entropy asked for; 1 if they have more."""
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
    """Mean and deviation of each clip's own frames, [B, 1, D]."""
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
