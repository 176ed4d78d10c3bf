"""The frames nearest to every component, against a sort of all of them."""

import torch

from sjepa.s_jepa.units.nearest import NearestFrames


def test_batches_give_what_a_sort_of_all_frames_gives():
    draws = torch.Generator().manual_seed(0)
    score_NK = torch.randn(90, 5, generator=draws)
    window_N, frame_N = torch.arange(90) // 30, torch.arange(90) % 30
    found = NearestFrames(5, 7, 2)
    for part in torch.arange(90).split(13):  # the last one is shorter than what is kept
        found.add(score_NK[part], window_N[part], frame_N[part])
    for component in range(5):
        best = score_NK[:, component].argsort(descending=True)[:7].tolist()
        assert found.of(component) == [(int(window_N[n]), int(frame_N[n])) for n in best]
