"""Quantisation and tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa.tokenizer.codec.fsq import FSQ


@st.composite
def quantisers(draw):
    levels = tuple(draw(st.lists(st.integers(2, 9), min_size=1, max_size=5)))
    width = draw(st.integers(len(levels), 40))
    return FSQ(width, levels, draw(st.integers(1, 9)))


def features(fsq, seed=0):
    return 2 * torch.randn(3, 11, fsq.width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(quantisers(), st.integers(0, 1000))
def test_packing_and_unpacking_are_inverse(fsq, seed):
    codes = fsq.codes(features(fsq, seed))
    tokens = fsq.pack(codes)
    assert tokens.shape == (3, 11, len(fsq.groups))
    assert torch.equal(fsq.unpack(tokens), codes)
    assert all(int(tokens[..., number].max()) < size for number, size in enumerate(fsq.vocabulary))
    every = torch.stack([torch.randint(size, (5,)) for size in fsq.vocabulary], -1).to(torch.int32)
    assert torch.equal(fsq.pack(fsq.unpack(every)), every)


@settings(max_examples=30, deadline=None)
@given(quantisers(), st.integers(0, 1000))
def test_codes_are_the_nearest_values(fsq, seed):
    """Against a search over all values of a dimension."""
    given_TD = features(fsq, seed)[0]
    values = fsq.values(fsq.codes(given_TD))
    for dimension, level in enumerate(fsq.levels_of_dimensions):
        grid = torch.linspace(-1, 1, level)
        distances = (torch.tanh(given_TD[:, dimension, None]) - grid).abs()
        found = (values[:, dimension, None] - grid).abs().argmin(1)
        assert torch.allclose(distances.gather(1, found[:, None])[:, 0], distances.min(1).values, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(quantisers())
def test_values_and_codes_are_inverse(fsq):
    codes = torch.stack([torch.randint(level, (7,)) for level in fsq.levels_of_dimensions], -1)
    values = fsq.values(codes)
    assert values.abs().max() <= 1
    assert torch.equal(fsq.codes(torch.atanh(values.clamp(-1 + 1e-6, 1 - 1e-6))), codes)


def test_the_gradient_is_that_of_tanh():
    """Finite differences of tanh alone: rounding counts as the identity."""
    fsq = FSQ(12, (4, 8), 5)
    given_TD = features(fsq).requires_grad_()
    weights = torch.randn(fsq.width)
    (fsq.quantised(given_TD) * weights).sum().backward()
    step, exact = 1e-4, given_TD.detach().double()
    wanted = (torch.tanh(exact + step) - torch.tanh(exact - step)) / (2 * step) * weights
    assert torch.allclose(given_TD.grad.double(), wanted, atol=1e-5)


def test_the_reference_has_19_tokens_a_frame():
    fsq = FSQ(128)
    assert fsq.vocabulary == (16384,) * 18 + (16,)
    assert fsq.bits_per_frame == 256
    assert fsq.describe(2.5) == "19 tokens a frame, vocabulary 16,384 and 16, 47.5 tokens/s, 640 bit/s"


def test_the_first_dimension_is_the_least_significant_digit():
    fsq = FSQ(4, (3, 5), 4)
    codes = torch.tensor([[2, 1, 4, 3]])
    assert fsq.pack(codes).tolist() == [[2 + 3 * 1 + 9 * 4 + 45 * 3]]
    assert fsq.vocabulary == (math.prod((3, 3, 5, 5)),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((4, (4, 1)), "1 is below 2"),
        ((2, (4, 4, 4)), "3 values for 2"),
        ((64, (9,), 12), "more than 32 bits"),
        ((4, (4,), 0), "0 is below 1"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        FSQ(*arguments)


def test_tokens_of_another_quantiser_are_refused():
    fsq = FSQ(8, (4,), 4)
    with pytest.raises(ValueError, match="3 tokens a frame instead of 2"):
        fsq.unpack(torch.zeros(5, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="group 1: tokens from 0 to 256, not 0 to 255"):
        fsq.unpack(torch.tensor([[0, 0], [3, 256]]))
