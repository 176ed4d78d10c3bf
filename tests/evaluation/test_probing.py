import numpy as np
import pytest
import torch

from sjepa.core.errors import UserError
from sjepa.core.frames import SPEECH
from sjepa.evaluation.examples import LabelledClips, ProbeSettings
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import Labels
from sjepa.evaluation.probing import check_task, run_task
from sjepa.evaluation.scores import rows_of


def settings(**changes):
    values = {"splits": 2, "apart": None, "max_frames": 200, "steps": 60, "beam": 1} | changes
    return ProbeSettings(torch.device("cpu"), 0, **values)


@pytest.fixture
def clips():
    """Forty clips of two phones; layer 0 is noise, layer 1 shows the phone of each frame and, in
    its mean, the mood."""
    rng = np.random.default_rng(0)
    rows, frames = [], []
    for number in range(40):
        mood, first = number % 2, rng.integers(2)
        phones = [[first, 1 - first][t >= 10] for t in range(20)]
        shown = np.array([[phone, mood, 1.0] for phone in phones]) + 0.1 * rng.normal(size=(20, 3))
        frames.append(torch.tensor(np.stack([rng.normal(size=(20, 3)), shown], axis=1)).float())
        names = "AB"[first], "AB"[1 - first]
        rows.append({"mood": f"m{mood}", "who": f"s{number // 4}", "phones": " ".join(names),
                     "times": f"{names[0]}:0-0.2125 {names[1]}:0.2125-9"})  # fmt: skip
    rows[7]["mood"] = ""
    features = ClipFeatures([clip.mean(0) for clip in frames], list(frames), [SPEECH.centres(0, 20)] * 40)
    return LabelledClips(Labels(rows, "here"), np.zeros(40, bool)), features


def scores(task, clips, columns, **changes):
    labelled, features = clips
    return {
        name: (found, chance)
        for name, found, chance in run_task(task, labelled, features, columns, settings(**changes))
    }


def test_labels_of_clips_are_found_in_the_layer_that_shows_them(clips):
    found = scores("mood", clips, [1])
    assert set(found) == {"logistic", "mlp"}
    for own, chance in found.values():
        assert [score.values["accuracy"] for score in own] == [1.0, 1.0]
        assert {(score.train, score.test) for score in own} == {(31, 8)}  # one of forty has no label
        assert 0.3 <= chance <= 0.7  # of eight clips, half of each kind
    assert scores("mood", clips, [0])["logistic"][0][0].values["accuracy"] < 1
    assert scores("mood", clips, [0, 1])["logistic"][0][0].values["accuracy"] == 1  # learned weights


def test_phones_are_found_in_the_layer_that_shows_them_frame_by_frame_and_as_a_sequence(clips):
    frames = scores("frame_phones", clips, [1])
    assert set(frames) == {"linear", "mlp"}
    for name, (own, chance) in frames.items():
        assert all(score.values["accuracy"] > 0.97 for score in own), name
        assert {(score.train, score.test) for score in own} == {(200, 160)}
        assert chance == pytest.approx(0.5, abs=0.02)
    found = scores("phones", clips, [1], steps=150)
    assert set(found) == {"linear CTC", "bilstm CTC"}
    assert found["bilstm CTC"][0][0].values["PER"] < 0.1
    assert scores("phones", clips, [1], steps=150, beam=4)["bilstm CTC"][0][0].values["PER"] < 0.1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores(clips):
    """Of noise, where every head and every split counts another number of clips right."""
    found = scores("mood", clips, [0], splits=4)
    assert found == scores("mood", clips, [0], splits=4)
    accuracies = [score.values["accuracy"] for own, _ in found.values() for score in own]
    assert len(accuracies) == 8
    assert len(set(accuracies)) > 1


@pytest.mark.slow
def test_clips_that_share_a_label_stay_together(clips):
    """Each of ten speakers has a mark of his own: found in his other clips, unknown when he is held
    out."""
    labelled, features = clips
    means = [torch.eye(10)[i // 4].expand(2, 10) for i in range(40)]
    rows = [{**row, "mark": f"m{i // 4}"} for i, row in enumerate(labelled.labels.rows)]
    own = LabelledClips(Labels(rows, "here"), labelled.in_train), features._replace(means=means)
    assert scores("mark", own, [1])["logistic"][0][0].values["accuracy"] > 0.9
    apart = scores("mark", own, [1], apart="who")["logistic"][0]
    assert [score.values["accuracy"] for score in apart] == [0.0, 0.0]
    assert {(score.train, score.test) for score in apart} == {(32, 8)}
    assert scores("who", own, [1], apart="who")["logistic"][0][0].values["accuracy"] > 0.9  # not of itself
    alike = LabelledClips(Labels([{**row, "who": "one"} for row in rows], "here"), labelled.in_train)
    with pytest.raises(
        UserError, match=r"mood: 39 labelled clips are too few for training and test, with probe.apart: who"
    ):
        list(run_task("mood", alike, features, [1], settings(apart="who")))


@pytest.mark.slow
def test_a_training_set_keeps_to_itself_whom_the_test_set_has(clips):
    labelled, features = clips
    own = LabelledClips(labelled.labels, np.arange(40) >= 10)  # the third speaker is in both
    frames = scores("frame_phones", (own, features), [1], max_frames=10_000, apart="who")["linear"][0]
    assert {score.train for score in frames} == {round(0.8 * 28) * 20}
    rows = [dict(row) for row in labelled.labels.rows]
    for row in rows[10:]:
        row["phones"] = ""
    unlabelled = LabelledClips(Labels(rows, "here"), own.in_train)
    with pytest.raises(
        UserError, match=r"phones: 0 labelled clips of probe.train_path and 10 of the test set are too few"
    ):
        check_task("phones", unlabelled, settings())


def test_what_the_labels_cannot_give_is_known_beforehand(clips):
    labelled, _ = clips
    for task in ("mood", "frame_phones", "phones"):
        check_task(task, labelled, settings(apart="who"))
    silent = [{**row, "times": "SIL:0-1"} for row in labelled.labels.rows]
    for rows, task, options, message in (
        (silent, "frame_phones", {}, "frame_phones: the clips have 0 different labels"),
        ([{**row, "who": "one"} for row in silent], "mood", {"apart": "who"}, "are too few for training and test"),
        (silent, "characters", {}, "no clip has a label 'words'"),
        (silent, "mood", {"apart": "town"}, "no clip has a label 'town'"),
    ):
        with pytest.raises(UserError, match=message):
            check_task(task, LabelledClips(Labels(rows, "here"), labelled.in_train), settings(**options))


@pytest.mark.slow
def test_a_training_set_trains_recognition_and_the_test_set_tests_it(clips):
    labelled, features = clips
    own = LabelledClips(labelled.labels, np.arange(40) >= 10)
    frames = scores("frame_phones", (own, features), [1], max_frames=10_000)["linear"][0]
    assert {(score.train, score.test) for score in frames} == {(24 * 20, 200)}
    assert {(score.train, score.test) for score in scores("mood", (own, features), [1])["logistic"][0]} == {(31, 8)}


@pytest.mark.slow
def test_clips_that_could_not_be_read_are_left_out(clips):
    labelled, features = clips
    means = [None, *features.means[1:]]
    found = scores("who", (labelled, features._replace(means=means)), [1])["mlp"][0]
    assert {(score.train, score.test) for score in found} == {(31, 8)}


def test_labels_that_do_not_do_are_said(clips):
    labelled, features = clips
    alike = LabelledClips(Labels([{"mood": "same"}] * 40, "here"), labelled.in_train)
    with pytest.raises(UserError, match=r"probe.tasks: mood: the clips have 1 different labels"):
        list(run_task("mood", alike, features, [1], settings()))
    with pytest.raises(UserError, match=r"here: no clip has a label 'age'"):
        list(run_task("age", labelled, features, [1], settings()))


def test_rows_hold_mean_and_deviation_of_a_sample(clips):
    labelled, features = clips
    probed = next(run_task("who", labelled, features, [1], settings(splits=3)))
    found = probed.scores
    (row,) = rows_of("who", probed, "ours", "1", seed=0)
    values = [score.values["accuracy"] for score in found]
    assert row.mean == pytest.approx(np.mean(values))
    assert row.deviation == pytest.approx(np.std(values, ddof=1))
    assert row.splits == 3
