"""Single updates of a very small model."""

from dataclasses import replace
from functools import partial

import torch

from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.core.learner import Learner
from sjepa.dataset.batch import Sample, collate
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.s_jepa.assembly import step_settings
from sjepa.s_jepa.metrics import MetricSums
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.network import model_shape
from sjepa.s_jepa.optimizer import build_optimizer
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.step import Step, optimiser_update
from sjepa.s_jepa.targets.frozen import MFCCTargets
from tests.support.audio import tone
from tests.support.runs import SMALL


class Setup:
    """A small model with random targets; `update` makes one step and returns the weights' change."""

    def __init__(self, *overrides, dropout=False, seed=0):
        self.config = load_config(None, [*SMALL, *overrides])
        shape = model_shape(self.config, 8)
        if not dropout:
            quiet = replace(shape.encoder.transformer, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
            still = replace(shape.predictor, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
            shape = replace(shape, encoder=replace(shape.encoder, transformer=quiet), predictor=still)
        torch.manual_seed(seed)
        self.engine = Engine(device="cpu", precision="fp32")
        self.network = SJEPA(shape)
        gmm = DiagonalGMM(8, 39, features="mfcc39")
        gmm.set_parameters(torch.ones(8), 20 * torch.randn(8, 39), 400 * torch.ones(8, 39))
        self.targets = MFCCTargets(gmm, SPEECH)
        self.set_up()
        self.sums = MetricSums(8, self.engine.device)
        self.settings = replace(step_settings(self.config), layer_drop=0.0)

    def set_up(self, **changes):
        """Gives the network, as it is now, an optimiser."""
        build = partial(build_optimizer, **{"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.99), **changes})
        self.learner = Learner(self.engine, self.network, build)
        self.learner.model.train()

    def update(self, window, step=0):
        stage = plan(self.config, 10).at(0)
        return optimiser_update(self.learner, self.targets, window, Step(step, stage, self.settings), self.sums)

    def gradient(self):
        return torch.cat([parameter.grad.flatten() for parameter in self.network.parameters()])

    def weights(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.network.parameters()])


def sample(clip, seconds, value=None):
    audio = tone(seconds, seed=clip)[:, 0] * (1 + clip)
    if value is not None:
        audio[100] = value
    return Sample(audio, audio, clip, clip, f"clip {clip}")


def batch(*samples):
    return collate([(item, []) for item in samples])


CLIPS = [sample(0, 0.4), sample(1, 1.7), sample(2, 0.9), sample(3, 3.1)]
