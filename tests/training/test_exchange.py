"""What the processes of a run exchange in one update: collectives and bytes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sjepa.core.distributed import Engine, Processes
from sjepa.core.learner import Learner
from sjepa.core.random import key
from sjepa.s_jepa.assembly import step_settings
from sjepa.s_jepa.metrics import MetricSums
from sjepa.s_jepa.network import build_model
from sjepa.s_jepa.optimizer import build_optimizer
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.step import Step, optimiser_update
from tests.support.processes import as_torchrun_does
from tests.support.runs import SMALL
from tests.support.steps import CLIPS, Setup, batch

UPDATES = 3  # ddp arranges its buckets anew after the first


def exchanged(processes, exchange, micro_batches):
    """Collectives of the last of a few updates: (name, elements, their type), the number of
    weights, and the gradient."""
    torch.set_num_threads(1)
    engine = Engine(device="cpu", precision="fp32", processes=Processes(processes), exchange=exchange)
    targets = Setup().targets
    config = load_config(None, [*SMALL, "gmm.num_clusters=8"])
    stage = plan(config, 10).at(0)
    torch.manual_seed(key(0, "model"))
    learner = Learner(
        engine,
        build_model(config, stage, note=lambda _: None).eval(),
        lambda net: build_optimizer(net, lr=0.0, weight_decay=0.0, betas=(0.9, 0.99)),
    )
    shares = [CLIPS[index::processes] for index in range(processes)]
    window = [batch(*shares[engine.ranks.rank])] * micro_batches
    settings = step_settings(config)

    def update(number):
        sums = MetricSums(8, engine.device)
        assert optimiser_update(learner, targets, window, Step(0, stage, settings), sums).made

    for number in range(UPDATES - 1):
        update(number)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        update(UPDATES - 1)
    calls = [
        (event.name(), torch.Size(shape).numel(), kind)
        for event in profiler.profiler.kineto_results.events()
        if event.name().startswith("gloo:")
        for shape, kind in zip(event.shapes(), event.dtypes(), strict=True)
        if kind
    ]
    weights = [parameter for parameter in learner.network.parameters() if parameter.requires_grad]
    gradient = torch.cat([parameter.grad.flatten() for parameter in weights])
    return calls, sum(parameter.numel() for parameter in weights), gradient.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_are_exchanged_once_in_an_update(tmp_path, micro_batches):
    """Before them the number of frames, after them three figures (samples, news, loss) with the
    metrics of 7 + 8 numbers: three collectives, whatever the number of micro-batches."""
    (calls, weights, _), _ = as_torchrun_does(2, tmp_path, exchanged, 2, "fp32", micro_batches)
    assert sorted(calls) == [
        ("gloo:all_reduce", 1, "float"),
        ("gloo:all_reduce", 18, "double"),
        ("gloo:all_reduce", weights, "float"),
    ]


@pytest.mark.slow
def test_one_process_of_torchrun_exchanges_like_several(tmp_path):
    """So that a strategy can be tried on one device."""
    ((calls, weights, _),) = as_torchrun_does(1, tmp_path, exchanged, 1, "fp32", 1)
    assert calls == [("gloo:all_reduce", weights, "float")]  # metrics and counts have nobody to go to


@pytest.mark.slow
def test_gradients_rounded_for_the_exchange_are_half_the_bytes_and_stay_near(tmp_path):
    """bf16 has eight significant bits, before and after the sum."""
    (calls, weights, rounded), (_, _, other) = as_torchrun_does(2, tmp_path / "bf16", exchanged, 2, "bf16", 1)
    (_, _, exact), _ = as_torchrun_does(2, tmp_path / "fp32", exchanged, 2, "fp32", 1)
    assert ("gloo:all_reduce", weights, "c10::BFloat16") in calls
    assert len(calls) == 3
    rounded, other, exact = (torch.tensor(values, dtype=torch.float64) for values in (rounded, other, exact))
    assert torch.equal(rounded, other)  # on both processes
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 2**-7
