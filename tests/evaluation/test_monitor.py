import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.core.ranks import ALONE
from sjepa.dataset.batch import Sample, collate
from sjepa.dataset.windows import tiles
from sjepa.evaluation.labels import spans_of
from sjepa.s_jepa.units.monitor import PhoneMonitor
from sjepa.s_jepa.units.survey import TimedPhones

CLIPS, FRAMES = 40, 20


@pytest.fixture
def monitor():
    """Forty clips, half A and half B, silence at the end."""
    samples = 400 + 320 * (FRAMES - 1)
    windows = tiles(np.full(CLIPS, samples), samples, min_samples=800)
    phones = TimedPhones([spans_of("A:0-0.15 B:0.15-0.3 SIL:0.3-0.5")] * CLIPS, windows, SPEECH)
    audio = np.zeros(samples, np.float32)
    batches = [collate([(Sample(audio, audio, clip, clip, ""), [])]) for clip in range(CLIPS)]
    return PhoneMonitor(phones), batches


def told(features_of, unit_of, monitor):
    judge, batches = monitor
    for batch in batches:
        is_b = torch.arange(FRAMES) * 0.02 + 0.0125 >= 0.15
        judge.observe(batch, features_of(is_b), unit_of(is_b))
    return judge.figures(4, 3, ALONE)


def test_features_and_units_that_show_the_phone_score_one(monitor):
    found = told(lambda b: b[:, None].float().expand(-1, 3), lambda b: b.long() + 1, monitor)
    assert found == pytest.approx({"pnmi": 1.0, "frame_phones": 1.0})


def test_features_and_units_that_show_nothing_score_little(monitor):
    torch.manual_seed(0)
    found = told(lambda b: torch.randn(FRAMES, 3), lambda b: torch.randint(0, 4, (FRAMES,)), monitor)
    assert found["pnmi"] < 0.1
    assert found["frame_phones"] < 0.75


def test_what_was_observed_is_forgotten_and_nothing_gives_nothing(monitor):
    told(lambda b: b[:, None].float().expand(-1, 3), lambda b: b.long(), monitor)
    assert monitor[0].figures(4, 3, ALONE) == {}
