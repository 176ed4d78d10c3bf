"""Formulas of the tokenizer's layers against plain loops in float64, and what padding may change."""

import math

import pytest
import torch

from sjepa.core.random import generator
from sjepa.tokenizer.baselines import interpolated, visible_mean
from sjepa.tokenizer.masks import batch_masks, num_masked, span_mask
from sjepa.tokenizer.modules.conformer import ConformerBlock, ConformerShape
from sjepa.tokenizer.modules.encoder import TokenEncoder, TokenEncoderShape
from sjepa.tokenizer.modules.gaussian_attention import GaussianAttention
from sjepa.tokenizer.modules.lengths import real_steps
from sjepa.tokenizer.modules.snake import Snake
from sjepa.tokenizer.targets import clip_normalised, ramped_decay

SHAPE = TokenEncoderShape(16000, (6, 8, 8), (5, 4), 2, ConformerShape(12, 2, 7, 0.0), 2, 12)
HOP = 20


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TokenEncoder(SHAPE).double().eval()


def test_snake_is_its_formula():
    torch.manual_seed(0)
    snake = Snake(5).double()
    with torch.no_grad():
        snake.raw.copy_(torch.tensor([-9.0, -3.0, 0.0, 1.0, 4.0])[:, None])
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    y = snake(x).detach()
    for channel, raw in enumerate(snake.raw[:, 0].tolist()):
        alpha = math.log1p(math.exp(raw)) + 0.01
        for clip in range(2):
            for step in range(7):
                value = float(x[clip, channel, step])
                expected = value + min(1 / alpha, 10) * math.sin(alpha * value) ** 2
                assert float(y[clip, channel, step]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("length", [9, 6])
def test_the_gate_is_its_formula(length):
    """Density of a mixture of Gaussians around the clip's own mean, over real steps alone."""
    torch.manual_seed(0)
    attention = GaussianAttention(3).double()
    with torch.no_grad():
        attention.raw_width.copy_(torch.randn(4))
        attention.offset.add_(0.1 * torch.randn(4))
    x = torch.randn(1, 3, 9, dtype=torch.float64)
    gate = attention.gate(x, real_steps(torch.tensor([length]), x))
    weight, bias = attention.projection.weight[0, :, 0].tolist(), float(attention.projection.bias.detach())
    a = [sum(w * float(x[0, c, t]) for c, w in enumerate(weight)) + bias for t in range(9)]
    mean = sum(a[:length]) / length
    deviation = math.sqrt(sum((value - mean) ** 2 for value in a[:length]) / length + 1e-8)
    for step in range(length):
        density = 0.0
        for offset, raw in zip(attention.offset.tolist(), attention.raw_width.tolist(), strict=True):
            width = math.log1p(math.exp(raw)) + 1e-3
            z = (a[step] - mean - offset) / (deviation * width + 1e-8)
            density += math.exp(-0.5 * z * z) / (width * math.sqrt(2 * math.pi)) / 4
        assert float(gate[0, 0, step]) == pytest.approx(density, rel=1e-4)  # computed in float32


def test_the_gaussians_receive_different_gradients():
    torch.manual_seed(0)
    attention, x = GaussianAttention(3), torch.randn(2, 3, 50)
    (attention(x, real_steps(None, x)) * torch.randn(2, 3, 50)).sum().backward()
    assert len({round(value, 7) for value in attention.offset.grad.tolist()}) == 4


def test_a_gate_over_one_step_or_silence_is_finite():
    attention = GaussianAttention(3)
    for x in (torch.randn(1, 3, 1), torch.zeros(1, 3, 8)):
        x.requires_grad_()
        y = attention(x, real_steps(None, x))
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_masks_are_spans_of_the_ratio(ratio):
    """A plain loop in the same order draws the same spans; the last one is cut at the ratio."""
    for clip, frames in enumerate((2, 3, 8, 50, 200)):
        mask = span_mask(frames, ratio, 7, clip)
        draws, expected = generator(7, clip), [False] * frames
        wanted = max(1, min(frames - 1, round(ratio * frames)))
        while sum(expected) < wanted:
            length = min(int(draws.integers(2, max(4, frames // 4) + 1)), frames)
            start = int(draws.integers(0, frames - length + 1))
            for step in range(start, start + length):
                if sum(expected) < wanted:
                    expected[step] = True
        assert mask.tolist() == expected
        assert mask.sum() == num_masked(frames, ratio) == wanted
    assert num_masked(1, 0.5) == 0
    assert span_mask(3000, 0.999, 0).sum() == 2997


def test_masks_do_not_depend_on_the_batch():
    alone, both = batch_masks([30], [4], 0.5, 1), batch_masks([50, 30], [3, 4], 0.5, 1)
    assert torch.equal(both.mask_BT[1, :30], alone.mask_BT[0])
    assert not both.mask_BT[1, 30:].any()
    assert both.real_N.tolist() == [*range(50), *range(50, 80)]
    assert torch.equal(both.mask_BT.flatten()[both.masked_N], torch.ones(len(both.masked_N), dtype=torch.bool))


def test_the_decay_is_a_half_cosine():
    values = [ramped_decay(step, 101, start=0.9, end=0.99) for step in range(101)]
    for step, value in enumerate(values):
        assert value == pytest.approx(0.99 - 0.09 * (1 + math.cos(math.pi * step / 100)) / 2)
    assert values[0] == pytest.approx(0.9)
    assert ramped_decay(500, 101, start=0.9, end=0.99) == pytest.approx(0.99)
    assert 0.9 <= ramped_decay(0, 1, start=0.9, end=0.99) <= 0.99


def test_baselines_are_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(1, 7, 2, dtype=torch.float64)
    visible = torch.tensor([[False, True, False, False, True, False, False]])
    mean, between = visible_mean(x, visible), interpolated(x, visible)
    assert torch.allclose(mean[0, 3], (x[0, 1] + x[0, 4]) / 2)
    assert torch.allclose(between[0, 2], x[0, 1] * 2 / 3 + x[0, 4] / 3)
    assert torch.allclose(between[0, 3], x[0, 1] / 3 + x[0, 4] * 2 / 3)
    assert torch.equal(between[0, 0], x[0, 1])
    assert torch.equal(between[0, 6], x[0, 4])
    assert torch.equal(between[0, 1], x[0, 1])


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("more", [0, 1, HOP - 1])
def test_n_hops_are_n_frames(encoder, frames, more):
    """And a remainder is one more."""
    samples = frames * HOP + more
    assert encoder.geometry.frames(samples) == frames + (more > 0)
    features = encoder(torch.randn(1, samples, dtype=torch.float64))
    assert features.features_BTD.shape == (1, frames + (more > 0), 12)
    assert features.real_BT.all()


@pytest.mark.parametrize("fill", [0.0, 0.7, math.nan])
def test_padding_and_batch_mates_change_nothing(encoder, fill):
    torch.manual_seed(1)
    lengths = torch.tensor([400, 237, 60])
    batch = torch.full((3, 400), fill, dtype=torch.float64)
    clips = [torch.randn(1, int(length), dtype=torch.float64) for length in lengths]
    for row, clip in enumerate(clips):
        batch[row, : clip.shape[1]] = clip[0]
    together = encoder(batch, lengths)
    for row, clip in enumerate(clips):
        alone = encoder(clip).features_BTD[0]
        assert torch.allclose(together.features_BTD[row, : len(alone)], alone, atol=1e-6)  # the gate is float32
        assert int(together.real_BT[row].sum()) == len(alone)


def test_nothing_of_masked_samples_reaches_the_features(encoder):
    torch.manual_seed(2)
    waveform = torch.randn(1, 200, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, 3:6] = True
    encoder(waveform, mask_BT=mask).features_BTD.square().sum().backward()
    inside = waveform.grad[0, 60:120]
    assert not inside.any()
    assert waveform.grad[0, :60].any()
    assert waveform.grad[0, 120:].any()


def test_a_conformer_block_without_padding_needs_no_lengths():
    torch.manual_seed(0)
    block, x = ConformerBlock(ConformerShape(8, 2, 5)).eval(), torch.randn(2, 11, 8)
    assert torch.allclose(block(x, None), block(x, torch.tensor([11, 11])), atol=1e-6)


def test_targets_normalised_by_clip_have_zero_mean_and_unit_deviation_over_real_frames():
    torch.manual_seed(0)
    x, real = 3 + 2 * torch.randn(2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    real[1, 6:] = False
    y = clip_normalised(x, real)
    for row, frames in enumerate((9, 6)):
        own = x[row, :frames]
        assert torch.allclose(y[row, :frames], (own - own.mean(0)) / own.std(0, correction=0), atol=1e-5)


def test_the_level_of_a_clip_arrives_by_its_own_way_alone():
    torch.manual_seed(0)
    encoder, waveform = TokenEncoder(SHAPE).double().eval(), torch.randn(1, 200, dtype=torch.float64)
    quiet, loud = encoder(waveform).features_BTD, encoder(10 * waveform).features_BTD
    assert not torch.allclose(quiet, loud, atol=1e-3)
    torch.nn.init.zeros_(encoder.level.weight)
    quiet, loud = encoder(waveform).features_BTD, encoder(10 * waveform).features_BTD
    assert torch.allclose(quiet, loud, atol=1e-5)
