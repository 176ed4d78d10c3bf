"""Decorrelation of the encoder's features before they are quantised. N frames, D dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa.core.errors import SharedError
from sjepa.core.progress import Messages
from sjepa.dataset.batch import Batch
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.training.frame_sample import UNREADABLE, TrainingFrames

_FRAMES, _FEWEST_GROUPS = 20_000, 500
_LEAST_VARIANCE = 1e-6  # of a direction, as a share of the largest


class Whitening(nn.Module):
    """Features minus their mean, times the symmetric matrix (ZCA) that makes their covariance the
    identity: each dimension uses its levels equally, and no two tell the same. As created it
    changes nothing."""

    mean_D: Tensor
    matrix_DD: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("matrix_DD", torch.eye(width))

    def forward(self, features_BTD: Tensor) -> Tensor:
        """float32."""
        with torch.autocast(features_BTD.device.type, enabled=False):
            return (features_BTD.float() - self.mean_D) @ self.matrix_DD

    def fit(self, features_ND: Tensor) -> None:
        """To a sample of features."""
        features_ND = features_ND.double().cpu()
        mean_D = features_ND.mean(0)
        centred_ND = features_ND - mean_D
        values_D, vectors_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(features_ND))
        least = max(float(values_D[-1]) * _LEAST_VARIANCE, torch.finfo(torch.float32).tiny)
        self.mean_D.copy_(mean_D)
        self.matrix_DD.copy_((vectors_DD * values_D.clamp(min=least).rsqrt()) @ vectors_DD.T)


@torch.no_grad()
def fit_whitening(whitening: Whitening, encoder: TokenEncoder, frames: TrainingFrames, messages: Messages) -> None:
    """Fits it on about 20,000 frames of the training set, of all ranks. `encoder` in evaluation
    mode. Raises SharedError if no clip can be read."""

    def features(batch: Batch) -> Tensor:
        return encoder(batch.clean_BS, batch.lengths()).features_BTD

    sample, loader = frames.draw(_FRAMES, "whitening", fewest_groups=_FEWEST_GROUPS)
    batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="whitening: reading frames")
    rows_ND = frames.ranks.rows(frames.gather(batches, sample, features)[0])
    if not len(rows_ND):
        raise SharedError(UNREADABLE)
    whitening.fit(rows_ND)
    messages.note(f"whitening: {len(rows_ND):,} frames")
