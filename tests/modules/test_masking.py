import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjepa.core.random import key, uniform_tensor
from sjepa.s_jepa.modules.masking import num_masked, span_mask


def reference_mask(frames, clip, base_key, ratio, length):
    """The definition, word by word: spans in order of their draw until the count is met, the last
    one cut."""
    count = max(1, min(frames - 1, math.floor(ratio * frames)))
    starts = range(max(0, frames - length) + 1)
    draws = uniform_tensor(base_key, torch.tensor(clip), torch.arange(len(starts))).tolist()
    masked = []
    for start in sorted(starts, key=lambda s: (draws[s], s)):
        for frame in range(start, min(start + length, frames)):
            if frame not in masked and len(masked) < count:
                masked.append(frame)
    return set(masked)


@given(
    st.lists(st.integers(2, 120), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.3, 0.65, 0.9]),
    st.sampled_from([1, 4, 10, 25]),
    st.integers(0, 5),
)
def test_masks_are_the_definition(frames, ratio, length, step):
    clips = torch.arange(len(frames)) * 7
    base = key(0, "mask", step)
    masks = span_mask(frames, clips, mask_ratio=ratio, mask_length=length, base_key=base)
    for row, count, clip in zip(masks, frames, clips.tolist(), strict=True):
        assert set(row.nonzero().flatten().tolist()) == reference_mask(count, clip, base, ratio, length)


@given(st.lists(st.integers(2, 400), min_size=1, max_size=8), st.floats(0.01, 0.99), st.integers(1, 40))
def test_count_is_exact_never_on_padding_and_something_stays_visible(frames, ratio, length):
    masks = span_mask(frames, torch.arange(len(frames)), mask_ratio=ratio, mask_length=length, base_key=1)
    for row, count in zip(masks, frames, strict=True):
        assert row.sum() == num_masked(count, ratio) == max(1, min(count - 1, math.floor(ratio * count)))
        assert not row[count:].any()
        assert not row[:count].all()


def test_a_mask_is_keyed_by_step_and_clip_and_not_by_its_neighbours():
    alone = span_mask([50], torch.tensor([9]), mask_ratio=0.65, mask_length=10, base_key=3)
    together = span_mask([80, 50], torch.tensor([4, 9]), mask_ratio=0.65, mask_length=10, base_key=3)
    assert torch.equal(alone[0], together[1, :50])
    other_step = span_mask([50], torch.tensor([9]), mask_ratio=0.65, mask_length=10, base_key=4)
    assert not torch.equal(alone, other_step)


def test_every_frame_away_from_the_edges_is_masked_equally_often():
    # 4,000 clips: a frame is masked 2,600 times, deviation 30 for independent draws; five
    # deviations allowed
    masks = span_mask([200] * 4000, torch.arange(4000), mask_ratio=0.65, mask_length=10, base_key=0)
    counts = masks[:, 20:-20].sum(0).double()
    assert (counts - counts.mean()).abs().max() < 150


@pytest.mark.parametrize("frames", [0, 1])
def test_of_one_frame_it_is_masked_and_of_none_nothing(frames):
    assert num_masked(frames, 0.65) == frames
    assert span_mask([frames], torch.tensor([0]), mask_ratio=0.65, mask_length=10, base_key=0).sum() == frames
