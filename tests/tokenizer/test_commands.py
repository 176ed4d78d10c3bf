"""Commands that take what stage 1 writes."""

import csv

import pytest
import torch

from tests.support.commands import command
from tests.tokenizer.runs import run


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    assert run(corpus, root, "checkpoint.shards=true", "train.epochs=1") == 0
    return root / "t"


def test_a_folder_becomes_one_file(trained, tmp_path):
    done = command(
        "ckpt2pt", "--ds_dir", trained / "jepa_encoder_ds", "--out_pt", "encoder.pt", "--assert_gaatn", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "from final" in done.stdout
    content = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert content["config"]["model"]["size"] == "smoke"
    assert "states" not in content
    missing = command("ckpt2pt", "--ds_dir", trained, "--out_pt", "other.pt", cwd=tmp_path)
    assert missing.returncode == 2
    assert len(missing.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "other.pt").exists()


def test_the_encoder_is_probed(corpus, trained, tmp_path):
    """Beside MFCC and an untrained encoder."""
    done = command(
        "evalsjepa", f"init_weights={trained / 'train/weights/best.pt'}", f"dataset.test_path={corpus / 'test.zip'}",
        f"evaluation.labels={corpus / 'labels.tsv'}", "probe.tasks=[frame_phones]", "probe.splits=1", "run_name=e",
        "evaluation.figures=false", "dataset.num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "runs/e/eval/probes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"untrained", "MFCC"} < {row["features"] for row in rows}
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)
