"""Span masks with an exact number of masked frames, vectorised over a batch. [Masking]

B batch, T frames, P possible starts of a span.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sjepa.core.random import uniform_tensor
from sjepa.core.tensors import to_device


def num_masked(num_frames: int, mask_ratio: float) -> int:
    """Frames to mask of a clip's T: max(1, min(T − 1, ⌊ratio·T⌋)); 0 if it has none."""
    return max(1, min(num_frames - 1, math.floor(mask_ratio * num_frames))) if num_frames else 0


def span_mask(
    num_frames: Sequence[int], clip_id_B: Tensor, *, mask_ratio: float, mask_length: int, base_key: int
) -> Tensor:
    """Masks [B, T] on `clip_id_B`'s device: contiguous spans, added in random order until the count
    is met.

    Each possible start draws u ~ U(0, 1), keyed by (base_key, clip, start). A frame's rank is the
    smallest u of the spans that cover it; the frames of lowest rank are masked, ties by index, so
    the last span is truncated to meet the count. Padding is never masked; in clips of two or more
    frames at least one stays visible.
    """
    device, longest = clip_id_B.device, max(num_frames, default=0)
    if longest == 0:
        return torch.zeros(len(num_frames), 0, dtype=torch.bool, device=device)
    frames_B = to_device(num_frames, device)
    count_B = to_device([num_masked(frames, mask_ratio) for frames in num_frames], device)
    start_P = torch.arange(longest, device=device)
    time_BP = uniform_tensor(base_key, clip_id_B[:, None], start_P)
    # whole spans only; a clip shorter than a span has a single start
    time_BP = time_BP.masked_fill(start_P > (frames_B - mask_length).clamp(min=0)[:, None], 2.0)
    padded = F.pad(time_BP, (mask_length - 1, 0), value=2.0)
    time_BT = -F.max_pool1d(-padded[:, None], mask_length, stride=1)[:, 0]
    time_BT = time_BT.masked_fill(start_P >= frames_B[:, None], 3.0)
    order_BT = time_BT.argsort(dim=1, stable=True)
    ranked_BT = start_P.expand_as(order_BT) < count_B[:, None]
    return torch.zeros_like(ranked_BT).scatter(1, order_BT, ranked_BT)
