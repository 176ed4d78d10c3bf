"""Runs of a very small tokenizer in this process."""

from sjepa.config.load import load_config
from sjepa.entrypoints.systems import SYSTEMS
from sjepa.entrypoints.train import train
from sjepa.tokenizer.schema import SCHEMA

SYSTEM, DECODER = SYSTEMS["tokenizer encoder"], SYSTEMS["tokenizer decoder"]
SMALL = [
    "model.size=smoke", "dataset.max_seconds=2", "run_name=t", "dataset.num_workers=0", "train.batch_size=4",
    "train.grad_accum=2", "train.epochs=3", "train.precision=fp32", "scheduler.warmup_steps=0.2", "optimizer.lr=2e-3",
    "train.log_every=2", "target.ema_start=0.9", "logging.report=false", "logging.plots=false",
]  # fmt: skip

STAGE_2 = ["train.stage=train_decoder", "dataset.max_seconds=0.5", "decoder.disc_start_step=4", "decoder.sample_every=4",
           "train.epochs=3", "decoder.levels=[4,4]"]  # fmt: skip


def configured(corpus, root, *overrides):
    paths = [
        f"dataset.train_path={corpus / 'train.zip'}",
        f"dataset.test_path={corpus / 'test.zip'}",
        f"runs_root={root}",
    ]
    return load_config(SCHEMA, None, [*SMALL, *paths, *overrides])


def run(corpus, root, *overrides):
    """Trains stage 1; the exit code."""
    return train(SYSTEM, configured(corpus, root, *overrides))


def decode(corpus, root, *overrides):
    """Trains stage 2; the exit code."""
    return train(DECODER, configured(corpus, root, *STAGE_2, *overrides))
