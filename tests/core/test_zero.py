"""float16 with DeepSpeed's ZeRO: the loss is scaled, a gradient that overflows changes nothing."""

import importlib.util
import os

import pytest
import torch
from torch import nn

from sjepa.core.zero import Zero
from tests.support.processes import in_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed: pip install 'sjepa[deepspeed]'",
    ),
]
FACTORS = (1e-7, 0.05, 1e30, 0.05)  # of the loss in each update; the first gradient vanishes in float16 unless scaled


def built(network):
    return torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))


def loss_of(model, rank, update):
    x_ND = torch.randn(32, 8, generator=torch.Generator().manual_seed(10 * update + rank))
    return FACTORS[update] * (model(x_ND).float() - x_ND.sum(1, keepdim=True)).square().mean()


def flat(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def updates_in_half(ranks, stage):
    os.environ["LOCAL_RANK"] = str(ranks.rank)  # DeepSpeed asks for it
    network = small_network()
    model, optimizer = Zero(torch.device("cpu"), torch.float16, stage).setup(network, built)
    assert model(torch.zeros(1, 8)).dtype == torch.float16
    found = []
    for update in range(len(FACTORS)):
        optimizer.zero_grad()
        model.set_gradient_accumulation_boundary(True)
        model.backward(loss_of(model, ranks.rank, update))
        norm = float(optimizer.limit(0.1))
        optimizer.step()
        found.append((norm, flat(network)))
    return found


def updates_in_full():
    network = small_network()
    optimizer, found = built(network), []
    for update in range(len(FACTORS)):
        optimizer.zero_grad()
        (sum(loss_of(network, rank, update) for rank in range(2)) / 2).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        if update != 2:
            optimizer.step()
        found.append((float(norm), flat(network)))
    return found


@pytest.mark.parametrize("stage", [1, 2])
def test_float16_scales_the_loss_and_passes_over_an_overflow(tmp_path, stage):
    """Against float32 on one process; 2⁻¹¹ is the rounding of float16."""
    wanted, (found, other) = updates_in_full(), in_processes(2, tmp_path, updates_in_half, stage)
    for update, ((norm, weights), (own_norm, own)) in enumerate(zip(wanted, found, strict=True)):
        if update == 2:
            assert own_norm == float("inf")
            assert torch.equal(own, found[1][1])
        else:
            assert own_norm == pytest.approx(norm, rel=2e-2)
            assert (own - weights).norm() < 0.05 * (weights - flat(small_network())).norm()
        assert torch.equal(own, other[update][1])
