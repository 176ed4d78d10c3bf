"""The one loss: KL from the soft targets to the predictions, as a sum over frames and a count. [KL Loss]"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(targets_NK: Tensor, logits_NK: Tensor) -> Tensor:
    """KL(q ‖ softmax(logits)) of every frame, nats, float32 [N]. `targets_NK` holds probabilities."""
    log_predicted_NK = F.log_softmax(logits_NK.float(), dim=-1)
    return F.kl_div(log_predicted_NK, targets_NK, reduction="none").sum(dim=-1)
