"""Targets of stage 1: features of an EMA copy of the encoder on the whole clip. B batch, T frames,
D width, N frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sjepa.core.ranks import Ranks
from sjepa.modules.ema import EMAEncoder
from sjepa.tokenizer.modules.encoder import TokenEncoder, TokenFeatures

_LEAST_DEVIATION = 1e-4


def ramped_decay(step: int, steps: int, *, start: float, end: float) -> float:
    """EMA decay at `step` of `steps`: a half cosine from `start` to `end`."""
    progress = min(1.0, step / max(1, steps - 1))
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * progress))


def clip_normalised(features_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """Zero mean and unit deviation per clip and dimension over real frames, float32."""
    real_BT1, features_BTD = real_BT[..., None].float(), features_BTD.float()
    count_B11 = real_BT1.sum(1, keepdim=True).clamp(min=1)
    centred_BTD = (features_BTD - (features_BTD * real_BT1).sum(1, keepdim=True) / count_B11) * real_BT1
    variance_B1D = centred_BTD.square().sum(1, keepdim=True) / count_B11
    return centred_BTD * torch.rsqrt(variance_B1D + _LEAST_DEVIATION**2)


class TokenTargets(nn.Module):
    """The target encoder, and mean and deviation of its features per dimension over the last
    update, [D] each: targets are normalised by them."""

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        self.encoder = EMAEncoder(encoder)
        self.register_buffer("mean_D", torch.zeros(encoder.shape.width))
        self.register_buffer("deviation_D", torch.ones(encoder.shape.width))

    @torch.no_grad()
    def features(self, waveform_BS: Tensor, num_samples_B: Tensor | None) -> TokenFeatures:
        return self.encoder(waveform_BS, num_samples_B)  # type: ignore[no-any-return]

    @torch.no_grad()
    def measure(self, features: Sequence[Tensor], ranks: Ranks) -> None:
        """Mean and deviation over the given rows [N, D] of all ranks; kept as they are if there are
        none, or if they are not finite. Collective."""
        width, device = len(self.mean_D), self.mean_D.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        sums_3D = torch.zeros(3, width, dtype=wide, device=device)
        for rows_ND in features:
            centred_ND = rows_ND.to(wide) - self.mean_D  # sums of squares near the mean lose no digits
            sums_3D += torch.stack(
                [centred_ND.sum(0), centred_ND.square().sum(0), torch.full_like(sums_3D[0], len(rows_ND))]
            )
        ranks.add_up(sums_3D)
        count_D = sums_3D[2].clamp(min=1)
        shift_D = sums_3D[0] / count_D
        variance_D = (sums_3D[1] / count_D - shift_D.square()).clamp(min=_LEAST_DEVIATION**2)
        is_measured = (sums_3D[2] > 0) & shift_D.isfinite() & variance_D.isfinite()
        self.mean_D.copy_(torch.where(is_measured, self.mean_D + shift_D, self.mean_D))
        self.deviation_D.copy_(torch.where(is_measured, variance_D.sqrt(), self.deviation_D))

    def normalised(self, features: Tensor) -> Tensor:
        """Zero mean and unit deviation per dimension, float32."""
        return (features.float() - self.mean_D) / self.deviation_D
