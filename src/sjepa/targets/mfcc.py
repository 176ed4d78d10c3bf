"""Phase 1: posteriors of a frozen mixture over MFCC. [Phase 1 GMM Fitting]

B batch, S samples, T frames, N chosen frames, D features, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sjepa.core.frames import SPEECH
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.features.mfcc import MFCC, NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.reservoir import FrameSample

FEATURES = f"mfcc{NUM_FEATURES}"

Extractor = Callable[[Tensor, Tensor], Tensor]


class MFCCTargets(nn.Module):
    """Soft targets that never change."""

    def __init__(self, gmm: DiagonalGMM) -> None:
        super().__init__()
        self.gmm = gmm
        self.mfcc = MFCC()

    @torch.no_grad()
    def posteriors(self, clean_BS: Tensor, num_samples_B: Tensor, frame_N: Tensor) -> Tensor:
        """[N, K] at the flat frame indices b·T + t; rows sum to 1."""
        features_BTD = self.mfcc(clean_BS, num_samples_B)
        return self.gmm.posteriors(features_BTD.flatten(0, 1)[frame_N]).responsibilities_NK


@torch.no_grad()
def gather_features(batches: Iterable[Batch], sample: FrameSample, extract: Extractor, device: torch.device) -> Tensor:
    """Features [N, D] of the sampled frames. `batches` cover `sample`'s windows (`Batch.window` is the position in it);
    windows that could not be read are left out."""
    rows: list[Tensor] = []
    for batch in batches:
        if not batch.num_samples:
            continue
        on_device = batch.to(device)
        num_samples_B = to_device(batch.num_samples, device)
        features_BTD = extract(on_device.clean_BS, num_samples_B)
        for row, (window, samples) in enumerate(zip(batch.window, batch.num_samples, strict=True)):
            frames = torch.from_numpy(sample.frames_M[window])
            rows.append(features_BTD[row, frames[frames < SPEECH.frames(samples)].to(device)])
    return torch.cat(rows) if rows else torch.zeros(0, NUM_FEATURES, device=device)
