"""The convolutional frontend: raw audio to 20 ms frames. [Architecture Details]

B batch, S samples, P positions after the first convolution, T frames, C channels.

Everything after the first convolution runs on [B, C, 1, T] in channels-last memory. The first convolution and its group
norm are one: the norm's statistics follow from the mean and covariance of the 10-sample patches (y = w·p, so E[y] =
w·E[p] and Var[y] = wᵀ Cov[p] w), and the normalised output is a single matrix product per clip.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjepa.core.frames import FrameGeometry


class PatchStatistics(NamedTuple):
    """Mean [B, k] and covariance [B, k, k] of a clip's first-layer patches, float32."""

    mean_Bk: Tensor
    covariance_Bkk: Tensor


class ConvLayer(nn.Module):
    """One convolution's parameters; the first layer's also hold its group norm (names as in `transformers`)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, *, normalised: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        if normalised:
            self.layer_norm = nn.GroupNorm(channels, channels)


class Frontend(nn.Module):
    """Seven convolutions without bias, GELU after each, group norm per channel after the first."""

    def __init__(self, channels: int, *, geometry: FrameGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        sizes = zip(geometry.kernels, geometry.strides, strict=True)
        self.conv_layers: Any = nn.ModuleList(
            ConvLayer(channels if index else 1, channels, kernel, stride, normalised=index == 0)
            for index, (kernel, stride) in enumerate(sizes)
        )

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor, statistics: PatchStatistics | None = None) -> Tensor:
        """Features [B, T, C]. Group-norm statistics cover each clip's real samples only, or are those given."""
        patches_BPk = waveform_BS.unfold(1, self.geometry.kernels[0], self.geometry.strides[0])
        if statistics is None:
            statistics = self.statistics(waveform_BS, num_samples_B)
        x_BPC = F.gelu(self._first_layer(patches_BPk, statistics))
        x = x_BPC.transpose(1, 2).unsqueeze(2)  # [B, C, 1, P], channels last in memory
        for layer in self.conv_layers[1:]:
            conv = layer.conv
            weight = conv.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            x = F.gelu(F.conv2d(x, weight, stride=(1, conv.stride[0])))
        return x.squeeze(2).transpose(1, 2)

    def statistics(self, waveform_BS: Tensor, num_samples_B: Tensor) -> PatchStatistics:
        """What the group norm of each clip depends on, over the patches that lie within its real samples."""
        with torch.no_grad(), torch.autocast(waveform_BS.device.type, enabled=False):
            patches_BPk = waveform_BS.float().unfold(1, self.geometry.kernels[0], self.geometry.strides[0])
            count_B = self.geometry.first_layer_frames(num_samples_B)
            real_BP1 = (torch.arange(patches_BPk.shape[1], device=count_B.device) < count_B[:, None])[..., None]
            count_B1 = count_B[:, None].clamp(min=1)
            mean_Bk = (patches_BPk * real_BP1).sum(1) / count_B1
            centred_BPk = (patches_BPk - mean_Bk[:, None]) * real_BP1
            covariance_Bkk = centred_BPk.transpose(1, 2) @ centred_BPk / count_B1[..., None]
        return PatchStatistics(mean_Bk, covariance_Bkk)

    def first_layer(self, statistics: PatchStatistics) -> tuple[Tensor, Tensor]:
        """The first convolution and its group norm as one: kernel [B, C, k] and shift [B, C] per clip, float32."""
        first = self.conv_layers[0]
        norm = first.layer_norm
        weight_Ck = first.conv.weight.float().squeeze(1)
        mean_BC = statistics.mean_Bk @ weight_Ck.T
        variance_BC = ((weight_Ck @ statistics.covariance_Bkk) * weight_Ck).sum(-1)
        scale_BC = norm.weight * torch.rsqrt(variance_BC + norm.eps)
        return weight_Ck * scale_BC[..., None], norm.bias - mean_BC * scale_BC

    def _first_layer(self, patches_BPk: Tensor, statistics: PatchStatistics) -> Tensor:
        """Convolution and group norm at once, computed in float32: [B, P, k] → [B, P, C]."""
        with torch.autocast(patches_BPk.device.type, enabled=False):
            kernel_BCk, shift_BC = self.first_layer(statistics)
            normalised_BPC = torch.baddbmm(shift_BC[:, None], patches_BPk.float(), kernel_BCk.transpose(1, 2))
        device = patches_BPk.device.type  # from here on in the run's arithmetic
        return (
            normalised_BPC.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normalised_BPC
        )
