"""KL of a frame, its entropy and the metrics made of them, against torch's kl_div in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from sjepa.s_jepa.metrics import MetricSums
from sjepa.s_jepa.step import divergence


def test_kl_entropy_and_gradient_also_for_targets_of_zero():
    torch.manual_seed(0)
    targets = torch.softmax(8 * torch.randn(50, 7), dim=1)
    targets[:10] = torch.eye(7)[torch.arange(10) % 7]
    logits = torch.randn(50, 7, requires_grad=True)
    found = divergence(targets, logits)
    exact = logits.detach().double().requires_grad_()
    expected = F.kl_div(exact.log_softmax(-1), targets.double(), reduction="none").sum(-1)
    assert torch.allclose(found.kl_N.double(), expected, atol=1e-5)
    assert torch.allclose(found.entropy_N.double(), torch.special.entr(targets.double()).sum(-1), atol=1e-6)
    assert torch.allclose(found.log_predicted_NK.double(), exact.log_softmax(-1), atol=1e-6)
    found.kl_N.sum().backward()
    expected.sum().backward()
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-5)


def test_metrics_are_means_over_the_masked_frames():
    torch.manual_seed(1)
    targets, logits = torch.softmax(3 * torch.randn(40, 5), dim=1), torch.randn(40, 5)
    found, sums = divergence(targets, logits), MetricSums(5, torch.device("cpu"))
    for part in (slice(0, 15), slice(15, 40)):
        sums.add(targets[part], found.log_predicted_NK[part], masked_kl_N=found.kl_N[part],
                 masked_entropy_N=found.entropy_N[part], visible_kl_N=torch.zeros(0))  # fmt: skip
    read = sums.read()
    predicted = logits.softmax(-1)
    assert read.kl == pytest.approx(float(found.kl_N.mean()), rel=1e-5)
    assert read.entropy_bits == pytest.approx(
        float(torch.special.entr(predicted).sum(-1).mean()) / math.log(2), rel=1e-5
    )
    assert read.target_entropy_bits == pytest.approx(float(found.entropy_N.mean()) / math.log(2), rel=1e-5)
    assert read.top1 == pytest.approx(float((targets.argmax(1) == logits.argmax(1)).float().mean()))
