"""Attention with dropout on a CPU against a plain computation with the same masks."""

import pytest
import torch

from sjepa.modules import attention_dropout
from sjepa.modules.attention_dropout import attention_with_dropout
from sjepa.modules.dropout import Masks, dropout


def plain(q, k, v, real, rate, seed):
    """The whole matrix of weights at once; masks drawn head by head, as in pieces of one head."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1)
    masks = Masks(rate, seed=seed)
    kept = torch.stack([kept * scale for kept, scale in map(masks.draw, weights.flatten(0, 1))])
    return (weights * kept.view_as(weights)) @ v


def test_values_and_gradients_with_the_same_masks(monkeypatch):
    monkeypatch.setattr(attention_dropout, "_WEIGHTS", 1)  # one head at a time
    monkeypatch.setattr(attention_dropout, "new_seed", lambda x: 7)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 4, requires_grad=True) for _ in range(3))
    real = torch.arange(17) < torch.tensor([[17], [9]])
    ours, theirs = attention_with_dropout(q, k, v, real, 0.3), plain(q, k, v, real, 0.3, seed=7)
    assert torch.allclose(ours, theirs, atol=1e-6)
    direction = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(y, (q, k, v), direction) for y in (ours, theirs)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("weights", [1, 17 * 17 * 4, 1 << 18])
def test_backward_drops_what_forward_dropped(monkeypatch, weights):
    """However many heads a piece has: linear in the values, whose gradient tells the weights."""
    monkeypatch.setattr(attention_dropout, "_WEIGHTS", weights)
    torch.manual_seed(1)
    q, k = (torch.randn(2, 3, 17, 4) for _ in range(2))
    v = torch.randn(2, 3, 17, 4, requires_grad=True)
    y = attention_with_dropout(q, k, v, None, 0.5)
    direction = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, v, direction)
    assert torch.allclose((gradient * v).sum(), (y * direction).sum(), rtol=1e-4)


def test_the_same_seed_gives_the_same_values():
    q = torch.randn(1, 2, 30, 8)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((attention_with_dropout(q, q, q, None, 0.1), dropout(q, 0.1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], attention_with_dropout(q, q, q, None, 0.1))
