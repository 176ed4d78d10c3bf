import itertools
import math

import pytest

from sjepa.core.errors import UserError
from sjepa.s_jepa.plan import MASKED_ONLY, PHASE1, PHASE2, RunProgress, plan
from sjepa.s_jepa.schema import load_config


def schedule(*overrides, steps_per_epoch=10):
    return plan(load_config(None, overrides), steps_per_epoch)


def test_phase_1_lasts_all_epochs_or_max_steps():
    assert schedule("train.epochs=3").total_steps == 30
    limited = schedule("train.epochs=3", "train.max_steps=12")
    assert (limited.total_steps, limited.epochs) == (12, 2)


def test_warmup_below_one_is_a_fraction_of_the_stage():
    assert schedule("train.epochs=3", "scheduler.warmup_steps=0.2").at(0).rate.warmup_steps == 6
    assert schedule("scheduler.warmup_steps=7").at(0).rate.warmup_steps == 7


def test_a_warmup_longer_than_its_stage_is_warned_about():
    assert "never reaches its peak" in schedule("train.epochs=1", "scheduler.warmup_steps=11").warnings()[0]
    assert schedule("train.epochs=1", "scheduler.warmup_steps=0.5").warnings() == []


def test_stages_carry_loss_and_augmentation():
    stage = schedule("train.use_visible_loss=false", "dataset.augment.enabled=false", "gmm.num_clusters=7").at(0)
    assert (stage.visible_loss, stage.augment, stage.num_clusters, stage.targets) == (False, False, 7, "mfcc")


def test_rate_rises_linearly_to_the_peak_and_falls_as_a_cosine_to_the_floor():
    plan_ = schedule("train.epochs=11", "scheduler.warmup_steps=10", "optimizer.lr=1e-3")
    rates = [plan_.rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    for step in (30, 59, 90):  # closed form
        progress = (step - 10) / 99
        assert rates[step] == pytest.approx(1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2))


def test_constant_rate_stays_at_the_peak():
    plan_ = schedule("scheduler.warmup_steps=2", "optimizer.lr=1e-3", "scheduler.kind=constant")
    assert [plan_.rate(step) for step in (0, 1, 2, 99)] == [
        5e-4,
        1e-3,
        1e-3,
        1e-3,
    ]


def stages(*overrides, **more):
    return [
        (stage.name, stage.start_step, stage.end_step)
        for stage in plan(load_config(None, overrides), 10, **more).stages
    ]


TWO_PHASES = ["train.epochs=10", "train.phase2_start_epoch=4", "train.masked_only_epoch=7"]


def test_the_two_switches_make_three_stages_without_gaps():
    assert stages(*TWO_PHASES) == [(PHASE1, 0, 40), (PHASE2, 40, 70), (MASKED_ONLY, 70, 100)]
    first, second, third = schedule(*TWO_PHASES).stages
    assert [stage.phase for stage in (first, second, third)] == [1, 2, 2]
    assert [stage.phase_start_step for stage in (first, second, third)] == [0, 40, 40]
    assert [stage.targets for stage in (first, second, third)] == ["mfcc", "online", "online"]
    assert [stage.num_clusters for stage in (first, second, third)] == [100, 500, 500]
    assert [(stage.visible_loss, stage.augment) for stage in (first, second, third)] == [(True, True)] * 2 + [
        (False, False)
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.phase2_start_step=15", "train.masked_only_step=16"], [(PHASE1, 0, 15), (PHASE2, 15, 16), (MASKED_ONLY, 16, 100)]),
        (["train.phase2_start_epoch=0.35"], [(PHASE1, 0, 40), (PHASE2, 40, 100)]),
        (["train.epochs=3", "train.phase2_start_epoch=0.5"], [(PHASE1, 0, 15), (PHASE2, 15, 30)]),  # no end of an epoch near
        (["train.phase2_start_epoch=0.38"], [(PHASE1, 0, 40), (PHASE2, 40, 100)]),  # a fraction, at the nearest epoch's end
        (["train.phase2_start_epoch=0.01"], [(PHASE1, 0, 1), (PHASE2, 1, 100)]),
        (["train.phase2_start_epoch=0.5", "train.max_steps=7"], [(PHASE1, 0, 4), (PHASE2, 4, 7)]),
        (["train.phase2_start_epoch=4", "train.masked_only_epoch=4"], [(PHASE1, 0, 40), (MASKED_ONLY, 40, 100)]),
        (["train.phase=2"], [(PHASE2, 0, 100)]),
        (["gmm.online=true", "train.masked_only_epoch=5"], [(PHASE2, 0, 50), (MASKED_ONLY, 50, 100)]),
    ],
)  # fmt: skip
def test_switches_come_at_the_steps_epochs_and_fractions_asked_for(overrides, expected):
    assert stages("train.epochs=10", *overrides) == expected


def test_a_run_that_starts_in_phase_2_takes_k_from_num_clusters():
    (stage,) = schedule(
        "train.phase=2", "gmm.num_clusters=64", "optimizer.lr=1e-3", "scheduler.phase2_lr_ratio=0.25"
    ).stages
    assert (stage.num_clusters, stage.targets, stage.rate.peak) == (64, "online", pytest.approx(2.5e-4))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train.phase2_start_epoch=5", "train.masked_only_epoch=3"], "comes before the switch to phase 2"),
        (["train.masked_only_epoch=3"], "this run never reaches"),
        (["train.phase2_start_epoch=10"], "not before the end of the run (train.epochs: 10)"),
        (["train.phase2_start_epoch=5", "train.masked_only_epoch=12"], "not before the end of the run"),
        (["train.max_steps=30", "train.phase2_start_step=30"], "not before the end of the run (train.max_steps: 30)"),
        (["train.phase=2", "train.phase2_start_epoch=3"], "already starts in phase 2 (train.phase: 2)"),
        (["gmm.online=true", "train.phase2_start_step=3"], "already starts in phase 2 (gmm.online: true)"),
        (["train.phase2_start_epoch=0"], "set train.phase: 2 instead"),
        (["train.phase2_start_epoch=2", "train.phase2_start_step=5"], "give one of the two"),
        (["train.phase2_start_epoch=2", "gmm.ema_layer=6"], "outside the encoder's 6 layers"),
        (["train.phase=2", "gmm.ema_layer=-7"], "outside the encoder's 6 layers"),
        (["train.phase=2", "model.size=tiny", "gmm.ema_layer=2"], "outside the encoder's 2 layers"),
        (["train.freeze=6", "init_weights=x.pt"], "train.freeze: 6 of 6 encoder layers would leave none to train"),
        (["train.freeze=2"], "without init_weights the layers that it keeps would never learn anything"),
        (["train.freeze=2", "train.spectral_warmup=0.1", "init_weights=x.pt"], "train.freeze keeps the frontend as it is"),
        (["train.spectral_warmup=0.99", "train.max_steps=10"], "0.99 of the run is not before the end of the run"),
        (["train.spectral_warmup=0.2", "model.frontend=logmel"], "a logmel frontend has nothing to learn"),
        (["train.spectral_warmup=0.2", "train.phase=2"], "belongs to phase 1, which this run does not have"),
        (["train.spectral_warmup=0.5", "train.phase2_start_epoch=4"], "0.5 of the run is not before the switch to phase 2"),
        (["train.phase2_start_epoch=2.5"], "neither a whole epoch, nor a fraction"),
        (["train.phase2_start_epoch=-2"], "neither a whole epoch, nor a fraction"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused_with_the_reason_before_any_data_are_read(overrides, reason):
    with pytest.raises(UserError) as error:
        load_config(None, ["train.epochs=10", *overrides])
    assert reason in str(error.value)


def test_plans_that_mix_steps_and_epochs_are_checked_once_an_epoch_is_known():
    config = load_config(None, ["train.epochs=10", "train.phase2_start_step=60", "train.masked_only_epoch=5"])
    assert [stage.name for stage in plan(config, 20).stages] == [PHASE1, PHASE2, MASKED_ONLY]
    with pytest.raises(UserError, match="comes before the switch"):
        plan(config, 10)


def test_a_fraction_beside_steps_waits_for_the_length_of_an_epoch():
    config = load_config(None, ["train.max_steps=1200", "train.phase2_start_epoch=0.5", "train.masked_only_step=700"])
    assert [stage.start_step for stage in plan(config, 100).stages] == [0, 600, 700]


def test_a_layer_outside_the_model_does_not_matter_without_an_online_stage():
    assert schedule("model.size=tiny", "gmm.ema_layer=2").stages[0].targets == "mfcc"
    assert schedule("model.size=tiny", "gmm.ema_layer=-2", "train.phase=2").stages[0].targets == "online"


def test_phase_2_warms_up_again_to_its_own_peak_and_masked_only_goes_on_with_its_curve():
    overrides = [*TWO_PHASES, "scheduler.warmup_steps=0.1", "optimizer.lr=1e-3", "scheduler.phase2_lr_ratio=0.25"]
    rates = [schedule(*overrides).rate(step) for step in range(100)]
    assert max(rates[:40]) == pytest.approx(1e-3)
    assert rates[39] == pytest.approx(1e-4)
    assert rates[40:46] == pytest.approx([2.5e-4 * (step + 1) / 6 for step in range(6)])
    assert max(rates[40:]) == pytest.approx(2.5e-4)
    assert rates[99] == pytest.approx(2.5e-5)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[46:]))


def test_without_rewarming_one_curve_spans_the_run():
    overrides = [*TWO_PHASES, "scheduler.warmup_steps=0.1", "optimizer.lr=1e-3"]
    one = schedule(*overrides, "scheduler.rewarm_on_phase2=false")
    single = schedule("train.epochs=10", "scheduler.warmup_steps=0.1", "optimizer.lr=1e-3")
    for step in range(100):
        assert one.rate(step) == single.rate(step)


def test_stages_that_were_entered_stay_where_they_were_when_the_run_grows():
    overrides = ["train.epochs=40", "train.phase2_start_epoch=0.4", "train.masked_only_epoch=0.7"]
    grown = RunProgress(60, {PHASE1: 0, PHASE2: 40})
    assert stages(*overrides, progress=grown) == [(PHASE1, 0, 40), (PHASE2, 40, 280), (MASKED_ONLY, 280, 400)]
    assert stages("train.epochs=9", "train.phase2_start_epoch=5", "train.masked_only_epoch=5", progress=RunProgress(70, {PHASE1: 0, MASKED_ONLY: 50})) == [
        (PHASE1, 0, 50), (MASKED_ONLY, 50, 90)]  # fmt: skip
    (only,) = plan(
        load_config(None, ["train.phase=2", "train.masked_only_epoch=0"]),
        10,
        progress=RunProgress(70, {MASKED_ONLY: 0}),
    ).stages
    assert (only.name, only.phase_start_step) == (MASKED_ONLY, 0)
    with pytest.raises(UserError, match=r"train\.epochs: 4 is 40 updates, but the run is already at update 60"):
        plan(load_config(None, ["train.epochs=4", *overrides[1:]]), 10, progress=grown)
    shrunk = ["train.epochs=8", *overrides[1:]]
    assert stages(*shrunk, progress=RunProgress(60, {PHASE1: 0})) == [(PHASE1, 0, 60), (MASKED_ONLY, 60, 80)]


def test_a_longer_run_has_a_longer_warm_up_that_ends_before_phase_2():
    """Stopped at step 20 of 100 with a warm-up of 30; 300 steps would have one of 90, but phase 2
    comes at 50."""
    settings = ["train.spectral_warmup=0.3", "train.phase2_start_step=50"]
    config = load_config(None, ["train.epochs=30", *settings])
    stages = plan(config, 10, progress=RunProgress(20, {"phase 1 with spectrum": 0})).stages
    assert [(stage.name, stage.start_step) for stage in stages] == [("phase 1 with spectrum", 0), (PHASE2, 50)]
    assert stages[0].rate.end_step == 50
