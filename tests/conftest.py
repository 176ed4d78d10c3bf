"""Fixtures that several tests share: a small generated corpus and audio in every format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sjepa.dataset.demo import write_corpus
from tests.support.commands import no_process_left  # noqa: F401
from tests.support.runs import TWO_PHASES, run

LONGEST = (
    "test_trainings.py", "test_processes.py", "test_faults.py", "test_evalsjepa.py", "test_shards.py", "test_codec_run.py",
    "test_export.py", "test_inference.py", "test_two_phases.py", "test_run.py", "test_gpu_check.py", "test_commands.py",
    "test_documents.py", "test_examples.py", "test_init.py", "test_report.py", "test_hub.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no process is left alone with one of them."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.zip, test.zip and labels.tsv of generated speech: 4 speakers, 6 clips each."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, speakers=4, clips=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech that SJEPA_SPEECH names; without it the test says that it was
    skipped."""
    folder = os.environ.get("SJEPA_SPEECH")
    if not folder or not (Path(folder) / "train.zip").exists():
        pytest.skip("no real speech: set SJEPA_SPEECH to a folder with train.zip and test.zip")
    return Path(folder)


@pytest.fixture(scope="session")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs in phase 1."""
    root = tmp_path_factory.mktemp("runs")
    assert run(corpus, root, "logging.plots=true") == 0
    return root / "r" / "train"


@pytest.fixture(scope="session")
def two_phases(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run through both phases."""
    root = tmp_path_factory.mktemp("runs")
    assert run(corpus, root, *TWO_PHASES) == 0
    return root / "r" / "train"
