"""Which clips are held out where there is no test set."""

import json

import numpy as np
import pytest
import soundfile

from sjepa.core.errors import UserError
from sjepa.core.progress import silent
from sjepa.s_jepa.schema import load_config
from sjepa.training.data import held_out, load_clips

RATE = 16000


@pytest.fixture
def clips_of(tmp_path):
    """Clips of so many seconds, of these speakers, as segments of one recording."""
    longest = 400

    def clip_set(seconds, speakers=None):
        soundfile.write(tmp_path / "all.wav", np.full(longest * RATE, 0.1, np.float32), RATE)
        lines = [{"path": "all.wav", "offset": 0, "duration": duration} for duration in seconds]
        for line, speaker in zip(lines, speakers or [], strict=False):
            line["speaker"] = speaker
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
        config = load_config(None, ["dataset.validate=header", f"runs_root={tmp_path}"])
        return load_clips(config, str(tmp_path / "list.jsonl"), "dataset.train_path", progress=silent)

    return clip_set


def shares(found, clips):
    train, test = found
    assert len(train.clips) + len(test.clips) == len(clips)
    assert not set(train.clips.id_N) & set(test.clips.id_N)
    return test.clips.hours / (train.clips.hours + test.clips.hours)


@pytest.mark.parametrize("seed", range(6))
def test_the_fraction_is_of_the_audio(clips_of, seed):
    """One long recording among short ones is not held out, whatever the seed."""
    seconds = [360, *[3] * 60]
    found = clips_of(seconds)
    assert shares(held_out(found, 0.1, seed), seconds) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_whole_speakers_where_they_are_small_enough(clips_of, seed):
    names = [f"s{number % 10}" for number in range(100)]
    found = clips_of([3] * 100, names)
    _, test = split = held_out(found, 0.1, seed)
    assert shares(split, names) == pytest.approx(0.1)
    assert len({test.clips.speaker(position) for position in range(len(test.clips))}) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_speaker_who_says_nearly_everything_is_trained_on(clips_of, seed):
    names = ["a"] * 95 + ["b"] * 5
    assert shares(held_out(clips_of([3] * 100, names), 0.1, seed), names) == pytest.approx(0.05)
    names = ["a"] * 50 + ["b"] * 50  # both too large: single clips
    assert shares(held_out(clips_of([3] * 100, names), 0.1, seed), names) == pytest.approx(0.1)


def test_of_two_recordings_the_shorter_one(clips_of):
    train, test = held_out(clips_of([300, 200]), 0.1, 0)
    assert (round(train.clips.hours * 3600), round(test.clips.hours * 3600)) == (300, 200)
    with pytest.raises(UserError, match="has only one"):
        held_out(clips_of([300]), 0.1, 0)
