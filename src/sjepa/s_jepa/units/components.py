"""Statistics of mixture components against phone labels of frames.

N frames, K components, P phones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa.core.files import write_csv
from sjepa.s_jepa.units.nearest import NearestFrames

NEAREST_FRAMES = 50


class ComponentReport:
    """Counts of units (most likely component of each frame), co-occurrences of units and phones on
    labelled frames, and the phones of the labelled frames nearest to each mean."""

    def __init__(self, num_components: int, phones: Sequence[str], *, nearest: int = NEAREST_FRAMES) -> None:
        self.phones = list(phones)
        self.unit_count_K = np.zeros(num_components, np.int64)
        self.count_KP = np.zeros((num_components, len(self.phones)), np.int64)
        self.mass_K = np.zeros(num_components)
        self._nearest = NearestFrames(num_components, nearest, 1)

    def add(self, unit_N: Tensor, target_NK: Tensor, log_joint_NK: Tensor, phone_N: NDArray[np.int64]) -> None:
        """`unit_N`: the model's most likely component; `target_NK`: the mixture's posteriors;
        `log_joint_NK`: log joint probability of frame and component, used as proximity; `phone_N`:
        phone index, −1: unknown."""
        components = len(self.unit_count_K)
        units = unit_N.cpu().numpy()
        self.unit_count_K += np.bincount(units, minlength=components)
        self.mass_K += target_NK.sum(0).cpu().double().numpy()
        known = phone_N >= 0
        if not known.any():
            return
        pairs = units[known] * len(self.phones) + phone_N[known]
        self.count_KP += np.bincount(pairs, minlength=self.count_KP.size).reshape(self.count_KP.shape)
        self._nearest.add(log_joint_NK.float().cpu()[torch.from_numpy(known)], torch.from_numpy(phone_N[known]))

    @property
    def purity(self) -> float:
        """Phone purity: share of labelled frames whose phone is the most frequent one of their
        unit."""
        return float(self.count_KP.max(1).sum() / self.count_KP.sum())

    @property
    def pnmi(self) -> float:
        """Phone-normalised mutual information: I(unit; phone) / H(phone) (Hsu et al. 2021)."""
        return mutual_information(self.count_KP)

    @property
    def has_phones(self) -> bool:
        return bool(self.count_KP.sum())

    def write(self, path: Path) -> None:
        """Writes components.csv: one row per component, sorted by number of frames."""
        names = ["component", "frames", "mean_posterior"]
        names += ["phone", "phone_share", "nearest_phone", "nearest_share"] * self.has_phones
        rows = []
        mean_K = self.mass_K / max(1, self.unit_count_K.sum())
        for component in np.argsort(-self.unit_count_K, kind="stable").tolist():
            row: list[Any] = [component, int(self.unit_count_K[component]), f"{mean_K[component]:.6g}"]
            if self.has_phones:
                near = [phone for (phone,) in self._nearest.of(component)]
                near_P = np.bincount(near, minlength=len(self.phones))
                row += [*self._top(self.count_KP[component]), *self._top(near_P)]
            rows.append(row)
        write_csv(path, names, rows)

    def phone(self, component: int) -> tuple[str, str]:
        """The most frequent phone of a unit and its share; empty if none is known."""
        return self._top(self.count_KP[component]) if self.has_phones else ("", "")

    def _top(self, count_P: NDArray[np.int64]) -> tuple[str, str]:
        total = count_P.sum()
        return (self.phones[int(count_P.argmax())], f"{count_P.max() / total:.4f}") if total else ("", "")


def mutual_information(count_KP: NDArray[np.int64]) -> float:
    """Mutual information of rows and columns of a count table over the column entropy: 0 to 1."""
    joint_KP = count_KP / count_KP.sum()
    row_K1, column_1P = joint_KP.sum(1, keepdims=True), joint_KP.sum(0, keepdims=True)
    entropy = -_plogp(column_1P).sum()
    information = _plogp(joint_KP).sum() - _plogp(row_K1).sum() + entropy
    return float(information / entropy) if entropy > 0 else 0.0


def _plogp(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return share * np.log(np.where(share > 0, share, 1.0))
