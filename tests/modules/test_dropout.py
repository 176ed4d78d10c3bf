import math

import pytest
import torch
import torch.nn.functional as F

from sjepa.modules.dropout import Dropout, dropout
from sjepa.modules.transformer import Attention, TransformerShape


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_come_at_their_probability_and_the_rest_is_scaled_by_what_is_kept(probability, dtype):
    """256 masks of 10,010 draws. The rate of one is a neighbouring multiple of 1/256 (a deviation
    of at most 1/512); the deviation of the mean is that of all draws and 1/512/√256, and five of
    them are allowed. The mean of what is kept stays 1 in every mask (deviation √(p/(1 − p)/10,010))."""
    torch.manual_seed(0)
    masks = [dropout(torch.ones(10, 1001, dtype=dtype), probability) for _ in range(256)]
    zeros = torch.stack([(y == 0).double().mean() for y in masks])
    deviation = math.sqrt(probability * (1 - probability) / (256 * 10_010)) + 1 / 512 / 16
    assert abs(float(zeros.mean()) - probability) < 5 * deviation
    assert (zeros - probability).abs().max() < 1 / 256 + 5 * math.sqrt(probability * (1 - probability) / 10_010)
    for y in masks:
        assert len(y[y != 0].unique()) == 1
        assert abs(float(y.double().mean()) - 1) < 5 * math.sqrt(probability / (1 - probability) / 10_010) + (
            0 if dtype == torch.float32 else 0.004
        )


def test_draws_are_independent():
    """Zeros of neighbours in a row, of rows, at the distances at which one number of the generator
    is cut up, and of two calls: none is correlated (a million pairs: deviation 0.001)."""
    torch.manual_seed(1)
    a, b = (dropout(torch.ones(1 << 20), 0.1).eq(0).double() for _ in range(2))
    pairs = [(a, b), *((a[:-step], a[step:]) for step in (1, 2, 3, 4, 5, 8, 624, 1248, 2496))]
    for first, second in pairs:
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.005
    positions = a.view(-1, 8).mean(0)  # each part of a number
    assert (positions - 0.1).abs().max() < 0.004


def test_the_gradient_is_that_of_what_was_kept():
    torch.manual_seed(2)
    x = torch.randn(50, 40, requires_grad=True)
    y = dropout(x, 0.3)
    y.backward(torch.full_like(y, 2.0))
    scale = (y / x).detach()[y != 0].mean()
    assert abs(float(scale) * 0.7 - 1) < 1 / 256 / 0.7
    assert torch.allclose(x.grad, 2 * (y != 0) * scale)
    assert torch.allclose(y, x * (y != 0) * scale)


def test_the_same_seed_drops_the_same_and_evaluation_nothing():
    module, x = Dropout(0.2), torch.randn(30, 7)
    torch.manual_seed(3)
    first = module(x)
    torch.manual_seed(3)
    assert torch.equal(first, module(x))
    assert not torch.equal(first, module(x))
    assert module.eval()(x) is x
    assert dropout(x, 0.0) is x


def test_attention_with_dropout_is_attention_on_average():
    """Without its dropout it is torch's; with it, the mean over draws comes near (deviation of the
    mean of 400: about 2 % of the values' size)."""
    torch.manual_seed(4)
    attention = Attention(TransformerShape(32, 4, 64, attention_dropout=0.1))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, real = torch.randn(2, 11, 32), torch.arange(11) < torch.tensor([[11], [6]])
    expected = attention.eval()(x, real)
    attention.train()
    attention.dropout = 1e-9  # the path of dropout, with nothing dropped
    assert (attention(x, real) - expected)[real].abs().max() < 1e-5
    attention.dropout = 0.1
    mean = torch.stack([attention(x, real) for _ in range(400)]).mean(0)
    assert (mean - expected)[real].norm() < 0.05 * expected[real].norm()
    assert F.mse_loss(attention(x, real)[real], expected[real]) > 1e-6
    noisy = x + 100 * ~real[..., None]  # what padded frames hold changes nothing
    attention.dropout = 1e-9
    assert (attention(noisy, real) - expected)[real].abs().max() < 1e-5


@pytest.mark.parametrize("probability", [0.9, 0.999, 0.99999, 0.9999999])
def test_even_of_next_to_everything_dropped_the_mean_stays(probability):
    """Of 16 million: the rate is rounded to a 65,536th, and the scale goes with it (deviation of
    the mean: at most 0.063)."""
    torch.manual_seed(5)
    y = dropout(torch.ones(1 << 24), probability)
    assert abs(float(y.double().mean()) - 1) < 0.2
    assert not dropout(torch.ones(100), 1.0).any()


def test_scores_are_exact_in_bf16():
    """As near to float64 as torch's own attention, within a factor of 1.5."""
    torch.manual_seed(6)
    attention = Attention(TransformerShape(64, 2, 64, attention_dropout=0.0))
    for projection in (attention.q_proj, attention.k_proj):
        torch.nn.init.normal_(projection.weight, std=0.4)  # peaked weights
    x = torch.randn(2, 60, 64)
    exact = attention.double().eval()(x.double(), None).detach()
    attention.float().train()

    def error(rate):
        attention.dropout = rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((attention(x, None).detach().double() - exact).norm() / exact.norm())

    assert error(1e-9) < 1.5 * error(0.0)


def test_a_clip_of_no_frame_spoils_nothing():
    attention = Attention(TransformerShape(32, 4, 64, attention_dropout=0.1)).train()
    x, real = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [False] * 5])
    y = attention(x, real)
    y[0].sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in attention.parameters())
