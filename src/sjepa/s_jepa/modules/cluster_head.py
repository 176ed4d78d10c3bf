"""The cluster head g_ω, shared by visible and masked frames. [Predictor and Cluster Head]"""

from __future__ import annotations

from torch import Tensor, nn

from sjepa.modules.transformer import init_linear


class ClusterHead(nn.Module):
    """MLP with two hidden layers and GELU; outputs logits over K components."""

    def __init__(self, width: int, num_clusters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            init_linear(nn.Linear(width, width), width),
            nn.GELU(),
            init_linear(nn.Linear(width, width), width),
            nn.GELU(),
            init_linear(nn.Linear(width, num_clusters), width),
        )

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] → logits [N, K]."""
        return self.layers(x_ND)  # type: ignore[no-any-return]
