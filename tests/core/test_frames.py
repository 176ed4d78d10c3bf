import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sjepa.core.frames import SPEECH


def test_geometry_is_huberts():
    assert (SPEECH.receptive_field_samples, SPEECH.hop_samples, SPEECH.sample_rate) == (400, 320, 16000)


@given(st.integers(0, 500_000))
def test_frames_is_the_number_of_whole_receptive_fields(samples):
    expected = len(range(0, samples - 400 + 1, 320)) if samples >= 400 else 0
    assert SPEECH.frames(samples) == expected


@given(st.integers(1, 5000))
def test_samples_is_the_fewest_that_give_so_many_frames(frames):
    samples = SPEECH.samples(frames)
    assert SPEECH.frames(samples) == frames
    assert SPEECH.frames(samples - 1) == frames - 1


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_arrays_give_the_same_as_integers(kind):
    lengths = [0, 1, 79, 80, 399, 400, 719, 720, 48000]
    assert SPEECH.frames(kind(lengths)).tolist() == [SPEECH.frames(length) for length in lengths]
