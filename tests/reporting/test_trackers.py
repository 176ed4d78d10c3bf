"""Loggers beside the run's files: what reaches them, and what is said where one is missing."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from sjepa.config.run import Logging
from sjepa.core.errors import UserError
from sjepa.reporting.trackers import trackers
from tests.support.runs import run


class Calls(list):
    """(name, arguments, named arguments) of every call; `run`: what wandb.init gives."""

    run = None


@pytest.fixture
def library(monkeypatch):
    """A stand-in for wandb and trackio that writes down its calls."""
    calls = Calls()

    def recorder(name, result=None):
        def record(*given, **named):
            calls.append((name, given, named))
            return result

        return record

    for name in ("wandb", "trackio"):
        module = ModuleType(name)
        own = SimpleNamespace(log=recorder(f"{name}.log"), finish=recorder(f"{name}.finish"))
        module.init, module.log, module.finish = recorder(f"{name}.init", own), own.log, own.finish
        monkeypatch.setitem(sys.modules, name, module)
        calls.run = calls.run or own
    return calls


def test_figures_reach_both(library, tmp_path):
    settings = Logging.model_validate({"wandb": "offline", "trackio": True})
    found = trackers(settings, folder=tmp_path, name="own", config={"seed": 0}, warn=print)
    for tracker in found:
        tracker.log({"epochs/val_kl": 1.5}, 3)
        tracker.close()
    names = ["wandb.init", "trackio.init", "wandb.log", "wandb.finish", "trackio.log", "trackio.finish"]
    assert [name for name, *_ in library] == names
    (_, _, first), (_, _, second) = library[:2]
    assert (first["mode"], first["dir"], first["name"], first["config"]) == (
        "offline",
        str(tmp_path),
        "own",
        {"seed": 0},
    )
    assert (second["name"], second["config"]) == ("own", {"seed": 0})
    assert library[2][1] == ({"epochs/val_kl": 1.5, "epoch": 3},)


def test_none_without_being_asked(tmp_path):
    assert trackers(Logging(), folder=tmp_path, name="own", config={}, warn=print) == []
    assert Logging.model_validate({"wandb": False}).wandb == "off"  # YAML's off


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_is_told(monkeypatch, corpus, tmp_path, name):
    """Before there is a run folder."""
    monkeypatch.setattr("sjepa.reporting.trackers.find_spec", lambda wanted: None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    value = "offline" if name == "wandb" else "true"
    with pytest.raises(UserError, match=rf"logging.{name}: .* is not installed \(pip install 'sjepa\[{name}\]'\)"):
        run(corpus, tmp_path, f"logging.{name}={value}")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_run_logs_to_wandb_offline(corpus, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run(corpus, tmp_path, "train.epochs=1", "logging.wandb=offline") == 0
    assert list((tmp_path / "r/train/wandb").glob("offline-run-*/*.wandb"))


def test_a_logger_that_fails_is_told_once_and_ends_nothing(library, tmp_path, monkeypatch):
    def fails(*_):
        raise ConnectionError("no\nroute")

    told = []
    (tracker,) = trackers(
        Logging.model_validate({"wandb": "online"}), folder=tmp_path, name="own", config={}, warn=told.append
    )
    monkeypatch.setattr(library.run, "log", fails)
    for step in range(3):
        tracker.log({"train_steps/kl": 1.0}, step)
    tracker.close()
    assert told == ["logging.wandb failed, and is off from here on: no"]


def test_one_that_cannot_start_is_told_in_a_line(library, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(UserError, match=r"logging\.wandb: division by zero"):
        trackers(Logging.model_validate({"wandb": "online"}), folder=tmp_path, name="own", config={}, warn=print)
