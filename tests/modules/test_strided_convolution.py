"""Strided convolution as matrix products against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa.core.frames import FrameGeometry
from sjepa.modules.strided_convolution import strided_convolution
from sjepa.s_jepa.modules.frontend import Frontend


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(2, 9), channels=st.integers(1, 4), outputs=st.integers(1, 4), kernel=st.integers(1, 8),
    stride=st.integers(1, 5),
)  # fmt: skip
def test_values_and_gradients_are_those_of_conv1d(rows, channels, outputs, kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(rows * stride, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, channels, kernel, dtype=torch.float64, requires_grad=True)
    if kernel > 2 * stride:
        with pytest.raises(ValueError, match="stride"):
            strided_convolution(x, weight, stride)
        return
    ours = strided_convolution(x, weight, stride)
    behind = F.pad(x.T[None], (0, max(0, kernel - stride)))
    theirs = F.conv1d(behind, weight, stride=stride)[0].T
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-12)
    direction = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight), direction) for y in (ours, theirs)), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_rows_that_the_stride_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 rows"):
        strided_convolution(torch.zeros(5, 2), torch.zeros(3, 2, 3), 2)


@pytest.mark.parametrize(
    "geometry",
    [FrameGeometry(), FrameGeometry(8000, (10, 3, 3, 2), (5, 2, 2, 2)), FrameGeometry(8000, (4, 5, 2), (4, 3, 2))],
)
def test_the_frontend_is_torchs_convolutions(geometry):
    """Values, and gradients with respect to weights, for clips of every remainder of the hop."""
    torch.manual_seed(0)
    frontend = Frontend(6, geometry=geometry).double()
    first = frontend.conv_layers[0]
    for extra in range(0, geometry.hop_samples, 7):
        samples = geometry.samples(3) + extra
        waveform = torch.randn(2, samples, dtype=torch.float64)
        x = F.gelu(first.layer_norm(first.conv(waveform[:, None])))
        for layer in frontend.conv_layers[1:]:
            x = F.gelu(layer.conv(x))
        ours = frontend(waveform, torch.tensor([samples, samples]))
        assert ours.shape == (2, 3, 6)
        assert torch.allclose(ours, x.transpose(1, 2), atol=1e-5)  # statistics and first layer are float32
        direction = torch.randn_like(ours)
        weights = [layer.conv.weight for layer in frontend.conv_layers]
        for one, other in zip(
            torch.autograd.grad(ours, weights, direction),
            torch.autograd.grad(x.transpose(1, 2), weights, direction), strict=True,
        ):  # fmt: skip
            assert (one - other).norm() < 1e-4 * other.norm()
