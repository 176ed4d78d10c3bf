"""Convolution in the frequency domain against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa.modules import long_convolution as module
from sjepa.modules.long_convolution import long_convolution, pays
from sjepa.s_jepa.modules.positions import ConvPositions


def direct(x, weight):
    groups = x.shape[2] // weight.shape[1]
    out = F.conv1d(x.transpose(1, 2), weight, padding=weight.shape[2] // 2, groups=groups)
    return out[..., : x.shape[1]].transpose(1, 2)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3), frames=st.integers(1, 70), groups=st.integers(1, 3), channels=st.integers(1, 4),
    kernel=st.integers(2, 33),
)  # fmt: skip
def test_values_and_gradients_are_those_of_conv1d(batch, frames, groups, channels, kernel):
    torch.manual_seed(0)
    x = torch.randn(batch, frames, groups * channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(groups * channels, channels, kernel, dtype=torch.float64, requires_grad=True)
    ours, theirs = long_convolution(x, weight), direct(x, weight)
    assert torch.allclose(ours, theirs, atol=1e-11)
    direction = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight), direction) for y in (ours, theirs)), strict=True):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("width", [128, 768])
def test_float32_is_as_exact_as_the_direct_form(width):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 300, width), torch.randn(width, width // 16, 128)
    exact = direct(x.double(), weight.double())
    assert (long_convolution(x, weight) - exact).norm() / exact.norm() < 1e-6


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 60, 8).bfloat16(), torch.randn(8, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = long_convolution(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, long_convolution(x.float(), weight).bfloat16())


def test_positions_are_the_same_by_either_form(monkeypatch):
    """Whichever is faster for the number of frames."""
    torch.manual_seed(0)
    positions = ConvPositions(16, kernel=8, groups=4)
    x = torch.randn(2, 50, 16)
    assert pays(x, 8)
    assert not pays(x[:1, :23], 8)
    assert not pays(x.to("meta"), 8)
    used = []
    monkeypatch.setattr("sjepa.s_jepa.modules.positions.long_convolution",
                        lambda *given: used.append(True) or module.long_convolution(*given))  # fmt: skip
    ours = positions(x)
    assert used
    theirs = F.gelu(direct(x, positions.conv.weight) + positions.conv.bias)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(
        positions(x[:1, :20]), F.gelu(direct(x[:1, :20], positions.conv.weight) + positions.conv.bias), atol=1e-6
    )
    assert len(used) == 1
