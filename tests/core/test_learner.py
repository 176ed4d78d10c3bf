"""Several networks in training at once, each with its own optimiser, whatever the strategy."""

import gc
import importlib.util
import weakref

import pytest
import torch
from torch import nn

from sjepa.core.distributed import Engine, Processes
from sjepa.core.learner import Learner
from sjepa.core.sharding import in_one_piece
from tests.support.processes import as_torchrun_does

STEPS, REBUILT = 6, 3


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.seed, self.body, self.head = seed, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())

    def shards(self):
        return [self.body, self.head]

    def in_one_piece(self):
        return in_one_piece(self, lambda: Net(self.seed))

    def renew_head(self):
        torch.manual_seed(9)
        self.head = nn.Linear(8, 3)


def trained(strategy, processes):
    """The weights of two networks after a few updates in turn, the second at another rate; the
    second one's head is renewed on the way."""
    engine = Engine(device="cpu", precision="fp32", strategy=strategy, processes=Processes(processes))
    learners = [Learner(engine, Net(seed), lambda net: torch.optim.AdamW(net.parameters(), lr=0.0)) for seed in (1, 2)]
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        if step == REBUILT:
            learners[1].rebuild(Net.renew_head, forget="head.")
        for rate, learner in zip((1e-2, 3e-2), learners, strict=True):
            x = torch.randn(8, 4, generator=generator)
            own = x.chunk(processes)[engine.ranks.rank]
            learner.set_rate(rate)
            learner.zero_grad()
            with learner.accumulating(more=False):
                learner.backward((learner.model(own) - 1).square().sum() / 24)
            learner.clip_gradients(0.5)
            learner.step()
    return [
        {name: value.double().tolist() for name, value in own.network.in_one_piece().state_dict().items()}
        for own in learners
    ]


def freed(strategy, processes):
    """Whether the first network and its optimiser are gone after a rebuild."""
    engine = Engine(device="cpu", precision="fp32", strategy=strategy, processes=Processes(processes))
    learner = Learner(engine, Net(1), lambda net: torch.optim.AdamW(net.parameters()))
    learner.backward(learner.model(torch.ones(2, 4)).sum())
    learner.step()
    old = [weakref.ref(item) for item in (learner.network, learner.optimizer)]
    learner.rebuild(Net.renew_head, forget="head.")
    gc.collect()
    return [item() is None for item in old]


@pytest.fixture(scope="module")
def alone():
    return trained("auto", 1)


@pytest.mark.slow
def test_one_process_trains_each_as_plain_adamw_does(alone):
    net = Net(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        x, _ = (torch.randn(8, 4, generator=generator) for _ in range(2))  # the second network's
        optimizer.zero_grad()
        ((net(x) - 1).square().sum() / 24).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.allclose(value.double(), torch.tensor(alone[0][name], dtype=torch.float64), atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_two_processes_train_both_networks_as_one_does(alone, tmp_path, strategy):
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install 'sjepa[deepspeed]'")
    for answer in as_torchrun_does(2, tmp_path / strategy, trained, strategy, 2):
        for own, expected in zip(answer, alone, strict=True):
            for name, value in own.items():
                a, b = (torch.tensor(x, dtype=torch.float64) for x in (value, expected[name]))
                assert torch.allclose(a, b, atol=1e-5), name


@pytest.mark.slow
def test_a_sharded_network_is_freed_when_it_is_rebuilt(tmp_path):
    for answer in as_torchrun_does(2, tmp_path, freed, "fsdp", 2):
        assert answer == [True, True]
