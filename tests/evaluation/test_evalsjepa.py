"""evalsjepa as a user has it: files, pictures, what it says, and what it refuses."""

import csv
import zipfile

import numpy as np
import pytest
from matplotlib.image import imread
from transformers import HubertConfig, HubertModel

from sjepa.config.load import overridden
from sjepa.core.errors import UserError
from sjepa.entrypoints import evaluate as evaluate_module
from sjepa.entrypoints.build_h5 import build_files
from sjepa.entrypoints.evaluate import evaluate_weights
from sjepa.entrypoints.export import export_encoder
from sjepa.s_jepa.schema import load_config
from tests.support.runs import TWO_PHASES, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    assert run(corpus, root, *TWO_PHASES) == 0
    return root / "r/train"


def evaluated(corpus, root, weights, *more):
    overrides = [f"init_weights={weights}", f"dataset.test_path={corpus / 'test.zip'}", f"runs_root={root}", "run_name=e",
                 "dataset.num_workers=0", "train.precision=fp32", "train.batch_size=4", *more]  # fmt: skip
    assert evaluate_weights(load_config(None, overrides), overridden=overridden(overrides)) == 0
    return sorted((root / "e").glob("eval*"), key=lambda path: path.stat().st_mtime_ns)[-1]


def results(folder, name="results.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(corpus, trained, tmp_path_factory):
    """Everything asked for at once."""
    return evaluated(
        corpus, tmp_path_factory.mktemp("whole"), trained / "weights/best.pt", f"evaluation.labels={corpus / 'labels.tsv'}",
        "probe.tasks=[words, frame_phones, phones, characters]", "probe.layers=[-1, learned]", "probe.splits=2",
        "probe.steps=3", "probe.beam=2", f"probe.compare=[{trained / 'weights/best_phase1.pt'}]",
        f"probe.train_path={corpus / 'train.zip'}", f"dump.path={corpus / 'test.zip'}", "dump.source=targets",
    )  # fmt: skip


def test_results_hold_every_figure(trained, whole):
    found = {row["metric"]: float(row["value"]) for row in results(whole)}
    with (trained / "results.csv").open() as file:
        own = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert {name: found[name] for name in own} == pytest.approx(own, rel=1e-6)
    for reading in ("encoder", "predictor"):
        shares = [found[f"{reading}_above_{bits}_bits"] for bits in ("0.5", "1", "2")]
        assert 1 >= shares[0] >= shares[1] >= shares[2] >= 0
        assert 0 < found[f"{reading}_entropy_bits"] <= np.log2(12)
    assert 1 <= found["units_used"] <= 12
    assert 0 < found["unit_purity"] <= 1
    assert 0 <= found["unit_pnmi"] <= 1


def test_pictures_and_tables_are_there(trained, whole):
    pictures = {"entropy_hist", "utterance", "erank", "components", "probes"}
    assert {path.stem for path in whole.glob("*.jpg")} == pictures
    for name in pictures:
        assert imread(whole / f"{name}.jpg").std() > 5  # something is drawn
    ranks, history = results(whole, "erank.csv"), results(trained, "history.csv")
    assert [row["epoch"] for row in ranks] == [row["epoch"] for row in history]
    assert [row["erank_1"] for row in ranks] == [row["erank_1"] for row in history]
    assert len(results(whole, "components.csv")) == 12
    assert len((whole / "dump/units.km").read_text().splitlines()) == 6
    assert np.load(whole / "dump/posteriors.npz")["posteriors"].shape[1] == 3


def test_every_probe_has_a_row_for_every_source_of_features(whole):
    rows = results(whole, "probes.csv")
    sources = {(row["features"], row["layer"]) for row in rows}
    assert {layer for _, layer in sources} == {"1", "learned", ""}
    assert {name for name, _ in sources} == {
        "r/train/best.pt",
        "r/train/best_phase1.pt",
        "MFCC",
        "MFCC, by clip",
        "untrained",
    }
    assert len(sources) == 8
    measured = [(row["task"], row["probe"], row["metric"]) for row in rows if row["features"] == "MFCC"]
    assert measured == [
        ("words", "logistic", "accuracy"), ("words", "mlp", "accuracy"),
        ("frame_phones", "linear", "accuracy"), ("frame_phones", "mlp", "accuracy"),
        ("phones", "linear CTC", "PER"), ("phones", "bilstm CTC", "PER"),
        ("characters", "linear CTC", "CER"), ("characters", "linear CTC", "WER"),
        ("characters", "bilstm CTC", "CER"), ("characters", "bilstm CTC", "WER"),
    ]  # fmt: skip
    assert len(rows) == 8 * len(measured)
    for row in rows:
        assert np.isfinite(float(row["mean"]))
        assert row["metric"] != "accuracy" or float(row["mean"]) <= 1
        assert row["splits"] == "2"
    frames = {
        row["probe"]: float(row["mean"]) for row in rows if row["task"] == "frame_phones" and row["features"] == "MFCC"
    }
    assert frames["linear"] > 0.5  # of 30 phones, seven in ten of which a larger corpus gives


def test_the_same_seed_gives_the_same_bytes(corpus, trained, tmp_path):
    options = [
        f"evaluation.labels={corpus / 'labels.tsv'}",
        "probe.tasks=[words]",
        "probe.splits=1",
        "evaluation.figures=false",
    ]
    a, b = (evaluated(corpus, tmp_path, trained / "weights/best.pt", *options) for _ in range(2))
    for name in ("results.csv", "components.csv", "probes.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert not list(a.glob("*.jpg"))


def test_weights_away_from_their_run_need_nothing_else(corpus, trained, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/alone.pt").write_bytes((trained / "weights/best_phase1.pt").read_bytes())
    folder = evaluated(corpus, tmp_path, tmp_path / "w/alone.pt")
    assert {path.name for path in folder.iterdir()} >= {
        "results.csv",
        "entropy_hist.jpg",
        "utterance.jpg",
        "components.csv",
    }
    assert not (folder / "erank.csv").exists()
    assert "no erank.csv: effective ranks over training are in a run's history" in capsys.readouterr().out


def test_the_same_labels_do_for_a_set_in_hdf5(corpus, trained, tmp_path):
    assert build_files(load_config(None, [
        f"dataset.train_path={corpus / 'test.zip'}", f"dataset.test_path={corpus / 'test.zip'}", "dataset.num_workers=0",
        f"dataset.train_h5={tmp_path / 'a.h5'}", f"dataset.test_h5={tmp_path / 'b.h5'}", "dataset.augment.enabled=false",
        f"runs_root={tmp_path}",
    ])) == 0  # fmt: skip
    options = [
        f"evaluation.labels={corpus / 'labels.tsv'}",
        "probe.tasks=[words]",
        "probe.splits=1",
        "evaluation.figures=false",
    ]
    stored = ["dataset.use_hdf5=true", f"dataset.test_h5={tmp_path / 'b.h5'}"]
    a = evaluated(corpus, tmp_path, trained / "weights/best.pt", *options)
    b = evaluated(corpus, tmp_path, trained / "weights/best.pt", *options, *stored)
    for name in ("results.csv", "probes.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_texts_of_any_kind_and_length_are_drawn(corpus, trained, tmp_path):
    """Signs that mean formulas to the library, and more words and phones than the picture is wide."""
    rows = ["path\twords\ttimes"]
    with zipfile.ZipFile(corpus / "test.zip") as archive:
        rows += [f"{name}\tit costs $5 or $_^ {'long ' * 90}\t$^$:0-0.2 $_$:0.3-90" for name in archive.namelist()]
    (tmp_path / "labels.tsv").write_text("\n".join(rows))
    folder = evaluated(corpus, tmp_path, trained / "weights/best.pt", f"evaluation.labels={tmp_path / 'labels.tsv'}")
    assert imread(folder / "utterance.jpg").shape[1] > 1000
    assert (folder / "components.jpg").exists()


def test_a_history_of_something_else_costs_only_its_picture(corpus, trained, tmp_path, capsys):
    (tmp_path / "x/weights").mkdir(parents=True)
    (tmp_path / "x/weights/best.pt").write_bytes((trained / "weights/best.pt").read_bytes())
    for content in ("epoch,loss\n1,2\n", "epoch,loss\n", "\0"):
        (tmp_path / "x/history.csv").write_text(content)
        folder = evaluated(corpus, tmp_path, tmp_path / "x/weights/best.pt", f"dump.path={corpus / 'test.zip'}")
        assert (folder / "dump/units.km").exists()
        assert "no erank.csv: " in capsys.readouterr().out


def test_the_file_wins_and_says_so(corpus, trained, tmp_path, capsys):
    """A key of the configuration file gives way in one line; the same key on the command line is an
    error."""
    weights = trained / "weights/best.pt"
    (tmp_path / "c.yaml").write_text(
        f"init_weights: {weights}\nruns_root: {tmp_path}\nrun_name: e\nmodel: {{size: base}}\nmasking: {{mask_ratio: 0.4}}\n"
        f"dataset: {{test_path: {corpus / 'test.zip'}, num_workers: 0}}\ngmm: {{num_clusters: 7}}\n"
    )
    assert evaluate_weights(load_config(tmp_path / "c.yaml")) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if "the file's own" in line)
    for text in ("model.size tiny (not base)", "masking.mask_ratio 0.65 (not 0.4)", "gmm.num_clusters 12 (not 7)"):
        assert text in line
    overrides = ["model.size=base", "masking.mask_ratio=0.65", "train.phase=1"]
    config = load_config(tmp_path / "c.yaml", overrides)
    for command in (evaluate_weights, export_encoder):
        with pytest.raises(UserError) as error:
            command(config, overridden=overridden(overrides))
        assert sorted(str(error.value).splitlines()) == [
            f"model.size=base: {weights} was trained with tiny; leave it out",
            f"train.phase=1: {weights} was trained with 2; leave it out",
        ]


def test_a_hugging_face_folder_is_probed(corpus, tmp_path, capsys):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
    }
    HubertModel(HubertConfig(**sizes, num_conv_pos_embedding_groups=4)).save_pretrained(tmp_path / "hf")
    options = [f"evaluation.labels={corpus / 'labels.tsv'}", "probe.splits=1"]
    folder = evaluated(corpus, tmp_path, tmp_path / "hf", "probe.tasks=[words]", "probe.layers=[0]", *options)
    assert not (folder / "results.csv").exists()
    names = list(dict.fromkeys(row["features"] for row in results(folder, "probes.csv")))
    assert names[0].endswith("/hf")
    assert names[1:] == ["MFCC", "MFCC, by clip", "untrained"]
    with pytest.raises(
        UserError, match=r"a Hugging Face folder, without a mixture to measure against; probe.tasks names"
    ):
        evaluated(corpus, tmp_path, tmp_path / "hf", *options)
    with pytest.raises(UserError, match=r"probe.layers: .*hf has layers 0 to 2, not 3"):
        evaluated(corpus, tmp_path, tmp_path / "hf", "probe.tasks=[words]", "probe.layers=[3]", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["probe.tasks=[age]"], r"no clip has a label 'age' \(labels there: gender, path"),
        (["probe.tasks=[speaker]"], "the clips have 1 different labels"),
        (["probe.tasks=[words]", "probe.apart=age"], "no clip has a label 'age'"),
        (["probe.tasks=[words]", "probe.layers=[7]"], "has layers 0 to 1, not 7"),
        (["probe.tasks=[words]", "probe.compare=[absent.pt]"], "absent.pt: no such file"),
        (["evaluation.utterance=absent.flac"], "no clip's name ends with 'absent.flac'"),
        (["dump.path=absent"], "absent: no such file or folder"),
        (
            ["probe.tasks=[words]", "probe.apart=speaker"],
            "are too few for training and test, with probe.apart: speaker",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(corpus, trained, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        evaluated(corpus, tmp_path, trained / "weights/best.pt", f"evaluation.labels={corpus / 'labels.tsv'}", *options)
    assert not list(tmp_path.glob("e/eval*"))


def test_a_reader_that_is_killed_is_told(corpus, trained, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(evaluate_module, "survey", killed)
    with pytest.raises(UserError, match=r"dataset.num_workers: a data loading worker was killed .* Run it again"):
        evaluated(corpus, tmp_path, trained / "weights/best.pt")
