import math

import pytest

from sjepa.config.load import load_config
from sjepa.config.schedule import plan
from sjepa.training.lr_schedule import learning_rate


def schedule(*overrides, steps_per_epoch=10):
    return plan(load_config(None, overrides), steps_per_epoch)


def test_phase_1_lasts_all_epochs_or_max_steps():
    assert schedule("train.epochs=3").total_steps == 30
    limited = schedule("train.epochs=3", "train.max_steps=12")
    assert (limited.total_steps, limited.epochs) == (12, 2)


def test_warmup_below_one_is_a_fraction_of_the_stage():
    assert schedule("train.epochs=3", "scheduler.warmup_steps=0.2").at(0).warmup_steps == 6
    assert schedule("scheduler.warmup_steps=7").at(0).warmup_steps == 7


def test_a_warmup_longer_than_its_stage_is_warned_about():
    assert "never reaches its peak" in schedule("train.epochs=1", "scheduler.warmup_steps=11").warnings()[0]
    assert schedule("train.epochs=1", "scheduler.warmup_steps=0.5").warnings() == []


def test_stages_carry_loss_and_augmentation():
    stage = schedule("train.use_visible_loss=false", "dataset.augment.enabled=false", "gmm.num_clusters=7").at(0)
    assert (stage.visible_loss, stage.augment, stage.num_clusters, stage.targets) == (False, False, 7, "mfcc")


def test_rate_rises_linearly_to_the_peak_and_falls_as_a_cosine_to_the_floor():
    plan_ = schedule("train.epochs=11", "scheduler.warmup_steps=10", "optimizer.lr=1e-3")
    rates = [learning_rate(plan_, step, kind="cosine", min_ratio=0.1) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    for step in (30, 59, 90):  # closed form
        progress = (step - 10) / 99
        assert rates[step] == pytest.approx(1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2))


def test_constant_rate_stays_at_the_peak():
    plan_ = schedule("scheduler.warmup_steps=2", "optimizer.lr=1e-3")
    assert [learning_rate(plan_, step, kind="constant", min_ratio=0.1) for step in (0, 1, 2, 99)] == [
        5e-4,
        1e-3,
        1e-3,
        1e-3,
    ]
