"""Metrics accumulated as sums on the device; transferred to the host only when reported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sjepa.training.figures import Figure


@dataclass(frozen=True)
class Metrics:
    """`loss`: KL over the frames in the stage's loss; `kl` (nats), `top1` (fraction) and
    `entropy_bits`: over masked frames only; `target_entropy_bits`: mean entropy of the targets;
    `clusters_used`: perplexity of the mean target posterior."""

    loss: float
    kl: float
    top1: float
    entropy_bits: float
    target_entropy_bits: float
    clusters_used: float
    frames: int

    def named(self) -> dict[str, float]:
        """Metrics reported for both training and validation."""
        return {
            "loss": self.loss,
            "kl": self.kl,
            "top1": self.top1,
            "entropy_bits": self.entropy_bits,
            "target_entropy_bits": self.target_entropy_bits,
        }


FIGURES = (
    Figure(name="loss", title="Loss", axis="KL over the frames in the loss (nats)"),
    Figure(name="kl", title="KL to the soft targets", axis="KL over masked frames (nats)", better="lower"),
    Figure(
        name="top1",
        title="Agreement of the likeliest component",
        axis="share of masked frames",
        shown=".3f",
        better="higher",
    ),
    Figure(
        name="entropy_bits",
        title="Entropy of the predictions",
        axis="entropy over masked frames (bits)",
        label="entropy",
        shown=".2f",
        unit=" bit",
        better="lower",
    ),
    Figure(name="target_entropy_bits", label="targets", beside="entropy_bits"),
    Figure(
        name="clusters_used",
        title="Components in use",
        axis="perplexity of the mean target",
        where="run",
        from_zero=True,
    ),
    Figure(
        name="pitch_match",
        title="Frames found again at another pitch",
        axis="share of validation frames",
        where="validation",
        better="higher",
        across_phases=True,
    ),
    Figure(
        name="pnmi",
        title="Phone-normalised mutual information of units",
        axis="mutual information over entropy of phones",
        where="validation",
    ),
    Figure(
        name="frame_phones",
        title="Frame phone accuracy, linear probe",
        axis="share of validation frames",
        where="validation",
    ),
    Figure(
        name="erank",
        title="Effective rank of each layer's features",
        axis="effective rank (2,000 frames)",
        where="layers",
        marks=("active_layer", "targets: layer {}"),
    ),
    Figure(name="layer_score", where="layers", label="smoothed, EMA encoder", beside="erank"),
    Figure(
        name="spread",
        title="Spread of each layer's features",
        axis="distance from the mean over size",
        where="layers",
    ),
)


class MetricSums:
    """Sums and counts: the means do not depend on the split into batches."""

    def __init__(self, num_clusters: int, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(7, dtype=wide, device=device)
        self._posterior_K = torch.zeros(num_clusters, dtype=wide, device=device)

    @torch.no_grad()
    def add(
        self,
        targets_NK: Tensor,
        log_predicted_NK: Tensor,
        *,
        masked_kl_N: Tensor,
        masked_entropy_N: Tensor,
        visible_kl_N: Tensor,
        visible_weight: float = 1.0,
    ) -> None:
        """Adds masked frames with their targets, the logarithm of their predictions [N, K], KL and
        entropy of the targets (nats), and the KL of the visible frames in the loss, each with
        weight `visible_weight`."""
        entropy = -(log_predicted_NK.exp() * log_predicted_NK).sum()
        agree_N = targets_NK.argmax(-1) == log_predicted_NK.argmax(-1)
        kl = masked_kl_N.double().sum() if self._sums.dtype == torch.float64 else masked_kl_N.sum()
        masked, visible = masked_kl_N.numel(), visible_weight * visible_kl_N.numel()
        counts = torch.tensor([masked + visible, masked], dtype=self._sums.dtype)
        bits = torch.stack([entropy, masked_entropy_N.sum()]) / math.log(2)
        values = torch.stack([kl + visible_weight * visible_kl_N.sum(), kl, agree_N.sum(), *bits])
        self._sums += torch.cat([values.to(self._sums.dtype), counts.to(values.device, non_blocking=True)])
        self._posterior_K += targets_NK.sum(0)

    def merge(self, other: MetricSums) -> None:
        """Adds the sums of `other`."""
        self._sums += other._sums
        self._posterior_K += other._posterior_K

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The raw sums, to be all-reduced."""
        return self._sums, self._posterior_K

    def reset(self) -> None:
        self._sums.zero_()
        self._posterior_K.zero_()

    def read(self) -> Metrics:
        """The means so far (NaN without frames). Synchronises with the device."""
        loss, kl, agree, entropy, target_entropy, frames, masked = self._sums.tolist()
        share_K = self._posterior_K / self._posterior_K.sum()
        used = float(torch.special.entr(share_K).sum().exp())
        per_masked = 1 / masked if masked else math.nan
        return Metrics(
            loss / frames if frames else math.nan, kl * per_masked, agree * per_masked, entropy * per_masked,
            target_entropy * per_masked, used, int(masked),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "posterior": self._posterior_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
        self._posterior_K.copy_(state["posterior"])
