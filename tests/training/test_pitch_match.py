import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.core.ranks import ALONE
from sjepa.dataset.batch import Sample, collate
from sjepa.features.mfcc import MFCC
from sjepa.s_jepa.pitch_match import NAME, PitchMatch, found_again
from tests.support.audio import tone


def batches(clips):
    for clip in range(clips):
        audio = tone(1.0, seed=clip)[:, 0] * (1 + clip)
        yield collate([(Sample(audio, audio, clip, clip, f"clip {clip}"), [])])


def judged(judge, clips, extract):
    for batch in batches(clips):
        judge.observe(batch, extract(batch.clean_BS), torch.zeros(49), extract(judge.other_form(batch)))
    return judge.figures(4, 3, ALONE)


def test_a_frame_is_found_again_by_itself_or_a_neighbour():
    """Thirty frames that are orthogonal but for the mean that is taken out."""
    frames = torch.eye(30)
    assert found_again(frames, 5 + 3 * frames) == 30
    assert found_again(frames, frames.roll(1, 0)) == 29  # the first is the last now
    assert found_again(frames, frames.roll(5, 0)) == 0


def test_features_that_pitch_does_not_move_match_and_noise_does_not():
    """Chance: 3 of 49 frames are near enough, 49 · 20 frames are asked: 6.1 % with a deviation of
    0.8 %."""
    places = torch.eye(49)
    assert judged(PitchMatch(20, SPEECH), 20, lambda waveform: places) == {NAME: 1.0}
    torch.manual_seed(0)
    assert judged(PitchMatch(20, SPEECH), 20, lambda waveform: torch.randn(49, 16))[NAME] < 0.1


@pytest.mark.slow
def test_some_of_many_clips_are_judged_and_the_same_ones_each_time():
    """A tenth of 100 clips, deviation 3."""
    judge = PitchMatch(640, SPEECH)
    first = judged(judge, 100, lambda waveform: MFCC(SPEECH)(waveform, torch.tensor([waveform.shape[1]]))[0])
    chosen = [not torch.equal(judge.other_form(batch), batch.clean_BS) for batch in batches(100)]
    assert 2 <= sum(chosen) <= 25
    assert judged(judge, 100, lambda waveform: MFCC(SPEECH)(waveform, torch.tensor([waveform.shape[1]]))[0]) == first
    assert 0 < first[NAME] < 1


def test_a_process_without_clips_hears_silence_like_the_others():
    judge, silence = PitchMatch(2, SPEECH), collate([]).or_silence(SPEECH.samples(2))
    assert torch.equal(judge.other_form(silence), silence.clean_BS)


def test_nothing_observed_is_no_figure():
    assert PitchMatch(5, SPEECH).figures(4, 3, ALONE) == {}


def test_several_clips_of_a_batch_are_told_apart():
    """The frames of the second are those that the first begins with: over both at once they would
    be found in the first."""
    samples = [
        Sample(x, x, clip, clip, "") for clip, x in enumerate((np.zeros(16000, np.float32), np.zeros(8000, np.float32)))
    ]
    batch, judge = collate([(sample, []) for sample in samples]), PitchMatch(2, SPEECH)
    frames = torch.eye(49)[[*range(49), *range(24)]]
    judge.observe(batch, frames, torch.zeros(73), frames)
    assert judge.figures(4, 3, ALONE) == {NAME: 1.0}
