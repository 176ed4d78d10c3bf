import math

import pytest

from sjepa.core.errors import UserError
from sjepa.reporting.console import duration
from sjepa.reporting.history import History
from sjepa.reporting.plots import draw_history
from sjepa.reporting.run_dir import existing_runs, new_run
from sjepa.reporting.summary import describe_stages
from sjepa.s_jepa.metrics import FIGURES
from sjepa.s_jepa.pitch_match import worse_phases
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.schema import load_config
from sjepa.training.report import EpochResult


def result(epoch, kl=2.0):
    figures = {"loss": kl, "kl": kl, "top1": 0.1 * epoch, "entropy_bits": 3.0, "target_entropy_bits": 1.0}
    config = load_config(None, ["train.epochs=9", "train.phase2_start_epoch=1"])
    online = epoch > 0
    return EpochResult(
        epoch=epoch,
        stage=plan(config, 10).at(10 * epoch),
        learning_rate=1e-3,
        train=figures,
        validation=figures,
        columns={
            "clusters_used": 40.0,
            "active_layer": epoch % 2 if online else "",
            "erank_0": 10.0 + epoch,
            "erank_1": math.nan,
        },
        details={
            "spread_0": 0.5,
            "spread_1": 0.4,
            **({"layer_score_0": 9.0 + epoch, "layer_score_1": 8.0} if online else {}),
        },
        gradient_norm=0.7,
        seconds=12.5,
        audio_hours=0.5 * (epoch + 1),
        waiting=0.1,
        skipped_updates=0,
        unreadable_clips=0,
        summary="train loss 2",
    )


def test_run_folders_are_numbered(tmp_path):
    names = [new_run(tmp_path, "r", "train").root.name for _ in range(3)]
    assert names == ["train", "train2", "train3"]
    (tmp_path / "r" / "train10").mkdir()
    (tmp_path / "r" / "trainer").mkdir()
    assert new_run(tmp_path, "r", "train").root.name == "train11"
    assert new_run(tmp_path, "r", "eval").root.name == "eval"
    assert [run.root.name for run in existing_runs(tmp_path, "r", "train")][-1] == "train11"


def test_a_runs_root_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="runs_root"):
        new_run(tmp_path / "file", "r", "train")


def test_history_survives_a_resume(tmp_path):
    history = History(tmp_path / "history.csv", FIGURES)
    for epoch in range(3):
        history.append(result(epoch))
    whole = (tmp_path / "history.csv").read_text()
    again = History(tmp_path / "history.csv", FIGURES)
    again.resume(2)  # the third epoch is to be done again
    assert [row["epoch"] for row in again.rows] == [0, 1]
    again.append(result(2))
    assert (tmp_path / "history.csv").read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_curve_is_drawn(tmp_path, epochs):
    history = History(tmp_path / "history.csv", FIGURES)
    for epoch in range(epochs):
        history.append(result(epoch))
    written = draw_history(history.rows, FIGURES, tmp_path / "plotes")
    names = ("loss", "kl", "top1", "entropy_bits", "clusters_used", "erank", "spread", "lr", "gradient_norm")
    assert [path.name for path in written] == [f"history_{name}.jpg" for name in names]
    assert all(path.stat().st_size > 5000 for path in written)


def test_the_plan_is_a_table_of_stages():
    text = describe_stages(plan(load_config(None, ["train.epochs=3"]), 10))
    assert "phase 1" in text
    assert "0–30" in text
    assert "30 updates, 10 in an epoch, 3 epochs" in text


@pytest.mark.parametrize(("seconds", "text"), [(4, "4 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_read_like_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_a_phase_2_that_makes_features_worse_is_told():
    rows = [{"phase": 1, "val_pitch_match": 0.7}, {"phase": 1, "val_pitch_match": 0.9}]
    assert worse_phases([*rows, {"phase": 2, "val_pitch_match": 0.895}]) == []
    assert worse_phases([*rows, {"phase": 2, "val_pitch_match": ""}]) == worse_phases(rows) == []
    (told,) = worse_phases([*rows, {"phase": 2, "val_pitch_match": 0.8}])
    assert "80.0% of frames are found again, 90.0% at the end of phase 1" in told
