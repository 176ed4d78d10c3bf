"""Runs of a very small model on a corpus, in this process."""

import csv
from contextlib import contextmanager

import pytest
import torch

from sjepa.entrypoints.systems import SYSTEMS
from sjepa.entrypoints.train import train
from sjepa.reporting.run_report import RunReport
from sjepa.s_jepa.schema import load_config
from sjepa.training.trainer import Trainer

SMALL = [
    "model.size=tiny", "gmm.num_clusters=8", "dataset.max_seconds=4",
    "model.overrides={conv_channels: 16, width: 32, num_layers: 2, num_heads: 2, ffn_width: 32, predictor_heads: 2, predictor_ffn_width: 32}",
]  # fmt: skip
RUN = [
    *SMALL, "run_name=r", "dataset.num_workers=0", "train.batch_size=4", "train.grad_accum=2", "train.epochs=2", "train.precision=fp32",
    "scheduler.warmup_steps=0.2", "optimizer.lr=2e-3", "gmm.fit_frames=600", "gmm.em_iters=3", "train.log_every=2",
    "logging.report=false", "logging.plots=false",
]  # fmt: skip


def run(corpus, root, *overrides):
    """Trains a very small model; the exit code."""
    paths = [
        f"dataset.train_path={corpus / 'train.zip'}",
        f"dataset.test_path={corpus / 'test.zip'}",
        f"runs_root={root}",
    ]
    return train(SYSTEMS["s-jepa"], load_config(None, [*RUN, *paths, *overrides]))


@contextmanager
def stopping_after(step):
    """Runs inside receive SIGTERM right after that update."""
    running, begin, updated = [], Trainer.run, RunReport.updated

    def remember(self):
        running.append(self)
        begin(self)

    def stop(self, clock):
        if clock.step == step:
            running[-1].stop_signal = 15
        updated(self, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", remember)
        patch.setattr(RunReport, "updated", stop)
        yield


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def final_state(folder):
    weights = torch.load(folder / "weights" / "last.pt", weights_only=True)
    timing = ("seconds", "data_waiting")
    return weights["model"], [{k: v for k, v in row.items() if k not in timing} for row in history(folder)]


def assert_same_run(a, b):
    (model_a, rows_a), (model_b, rows_b) = final_state(a), final_state(b)
    assert rows_a == rows_b
    assert model_a.keys() == model_b.keys()
    for name in model_a:
        assert torch.equal(model_a[name], model_b[name]), name


# 3 updates make an epoch: phase 2 from update 3, masked only from 8, inside the third epoch; layers
# checked at 5, 7, …
TWO_PHASES = ["train.epochs=4", "train.phase2_start_epoch=1", "train.masked_only_step=8", "gmm.num_clusters_phase2=12", "gmm.ema_layer=-1",
              "gmm.layer_check_every=2", "gmm.param_decay=0.9", "gmm.ema_decay_fast=0.9", "gmm.ema_switch_every=3"]  # fmt: skip

LOG_MEL = [
    *TWO_PHASES, "model.frontend=logmel", "gmm.normalise=clip", "gmm.context=2", "gmm.dimensions=6",
    "gmm.dimensions_phase2=6", "gmm.projection_phase2=predictions", "gmm.entropy_bits_phase2=2.0", "gmm.auto_layer=false", "gmm.hold_steps=4",
]  # fmt: skip
