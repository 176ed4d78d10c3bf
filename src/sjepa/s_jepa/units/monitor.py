"""Phone metrics in validation; labels are never used for training. N frames, D width, K components,
P phones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sjepa.core.random import hash_array, key
from sjepa.core.ranks import Ranks
from sjepa.dataset.batch import Batch
from sjepa.evaluation.classifiers import logistic_regression
from sjepa.s_jepa.units.components import mutual_information
from sjepa.s_jepa.units.survey import TimedPhones
from sjepa.training.frame_sample import GrowingRows

_HELD_OUT = 0.3  # fraction of clips, sampled by key
_STEPS = 50  # L-BFGS iterations
_MOST_FRAMES = 20_000  # for training and for test each


class PhoneMonitor:
    """On phone-labelled frames of validation clips: `val_pnmi`, phone-normalised mutual information
    of units (most likely component of the head on encoder output); `val_frame_phones`, accuracy of
    a linear probe on the last layer, on held-out clips."""

    def __init__(self, phones: TimedPhones) -> None:
        self._phones = phones
        self._columns: tuple[GrowingRows, ...] = ()

    def other_form(self, batch: Batch) -> None:
        """None: no transformed audio is needed."""

    def observe(self, batch: Batch, features_ND: Tensor, unit_N: Tensor, other_ND: Tensor | None = None) -> None:
        """Adds last-layer features and units of all real frames of a batch, clip by clip."""
        phone_N = torch.from_numpy(self._phones.numbers(batch, silence=False))
        draw = hash_array(key("monitor"), np.array(batch.clip_id_B.cpu()), 0) / 2.0**64
        frames = [self._phones.frames(samples) for samples in batch.num_samples]
        held_out_N = torch.from_numpy(np.repeat(draw < _HELD_OUT, frames))
        known = phone_N >= 0
        self._columns = self._columns or tuple(GrowingRows() for _ in range(4))
        for column, own in zip(
            self._columns, (features_ND.float().cpu(), unit_N.cpu(), phone_N, held_out_N), strict=True
        ):
            column.add(own[known])

    def figures(self, num_components: int, width: int, ranks: Ranks) -> dict[str, float]:
        """Figures since the last call, over all ranks; empty without labelled frames."""
        nothing = torch.zeros(0, dtype=torch.int64)
        found = [column.found for column in self._columns if column.found is not None]
        self._columns = ()
        features_ND, unit_N, phone_N, held_out_N = found or [torch.zeros(0, width), nothing, nothing, nothing.bool()]
        features_ND, unit_N, phone_N = (ranks.rows(column) for column in (features_ND, unit_N, phone_N))
        held_out_N = ranks.rows(held_out_N.long()).bool()
        if not ranks.is_main:
            return ranks.from_main({})
        figures: dict[str, float] = {}
        phones = len(self._phones.phones)
        if len(phone_N):
            pairs = (unit_N * phones + phone_N).numpy()
            count_KP = np.bincount(pairs, minlength=num_components * phones).reshape(num_components, phones)
            figures["pnmi"] = mutual_information(count_KP)
            figures |= _probed(features_ND, phone_N, held_out_N, phones)
        return ranks.from_main(figures)


def _probed(features_ND: Tensor, phone_N: Tensor, held_out_N: Tensor, phones: int) -> dict[str, float]:
    train, test = (side.nonzero()[:_MOST_FRAMES, 0] for side in (~held_out_N, held_out_N))
    if not len(train) or not len(test):
        return {}
    classify = logistic_regression(features_ND[train][:, None], phone_N[train], num_classes=phones, steps=_STEPS)
    right_N = classify(features_ND[test][:, None]) == phone_N[test]
    return {"frame_phones": float(right_N.float().mean())}
