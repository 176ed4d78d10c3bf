"""A second system: two networks trained against each other, at 8 kHz, with figures of its own.

A generator predicts each sample from the eight before it; a critic tells what is left of the sound
from noise. It shares nothing with S-JEPA but the engine.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from sjepa.config.load import Schema
from sjepa.config.run import RunConfig
from sjepa.core.frames import FrameGeometry
from sjepa.core.learner import Learner
from sjepa.core.torch_files import write_torch_file
from sjepa.training.figures import Figure
from sjepa.training.schedule import RateCurve, Schedule, Stage
from sjepa.training.task import Reading, Update, Validation

FIGURES = (
    Figure(name="error", title="Prediction error", axis="mean square", better="lower"),
    Figure(name="told_apart", title="Told apart", axis="loss of the critic", where="validation"),
)
PAST = 8
RENEWED = 7  # update from which errors are larger by OFFSET: not comparable with earlier ones
OFFSET = 10.0


class ToyConfig(RunConfig):
    @property
    def geometry(self):
        return FrameGeometry(sample_rate=8000, kernels=(PAST + 1,), strides=(1,))


@dataclass
class Sums:
    """Sum of errors and number of updates of an epoch."""

    values: list = field(default_factory=lambda: [0.0, 0])

    def add(self, value):
        self.values = [self.values[0] + value, self.values[1] + 1]

    def mean(self):
        return self.values[0] / max(1, self.values[1])

    def state_dict(self):
        return {"values": list(self.values)}

    def load_state_dict(self, state):
        self.values = list(state["values"])


class ToyTask:
    figures = FIGURES

    def __init__(self, run, networks, folder, report):
        build = partial(torch.optim.AdamW, lr=0.0)
        self.generator, self.critic = (
            Learner(run.engine, network, lambda network: build(network.parameters())) for network in networks
        )
        self.stage, self._folder, self._report = run.stage, folder, report
        self._epoch, self._recent, self._offset = Sums(), Sums(), 0.0

    @property
    def learners(self):
        return [self.generator, self.critic]

    @property
    def state(self):
        names = ("generator", "generator_optimizer", "critic", "critic_optimizer", "sums")
        parts = [part for learner in self.learners for part in (learner.network, learner.optimizer)]
        return dict(zip(names, [*parts, self._epoch], strict=True))

    def enter(self, stage, *, pause, best_stays):
        self.stage = stage

    def prepare(self, step):
        self._offset = OFFSET if step >= RENEWED else 0.0
        return step == RENEWED

    def _left_over(self, batch):
        past = (batch.clean_BS / batch.clean_BS.std()).unfold(1, PAST + 1, 1).flatten(0, 1)
        return past[:, -1] - self.generator.model(past[:, :-1])[:, 0], past[:, :-1]

    def update(self, window, *, step, rate, news):
        left = [self._left_over(batch) for batch in window]
        self.generator.set_rate(rate)
        self.generator.zero_grad()
        error = torch.stack([value.square().mean() for value, _ in left]).mean()
        self.generator.backward(error)
        norm = float(self.generator.clip_gradients(1.0))
        self.generator.step()
        if self.stage.phase == 2:
            self.critic.set_rate(rate / 2)
            self.critic.zero_grad()
            self.critic.backward(torch.stack([self._told_apart(past) for _, past in left]).mean())
            self.critic.step()
        self._recent.add(float(error.detach()) + self._offset)
        names = tuple(name for batch in window for name in batch.names)
        return Update(True, norm, sum(batch.total_samples for batch in window), names, news)

    def _told_apart(self, past):
        noise = torch.linspace(-1, 1, past.numel()).reshape(past.shape)
        return (
            nn.functional.softplus(self.critic.model(past)) + nn.functional.softplus(-self.critic.model(noise))
        ).mean()

    def recent(self):
        reading = Reading({"error": self._recent.mean()})
        for _ in range(self._recent.values[1]):
            self._epoch.add(reading.figures["error"])
        self._recent.values = [0.0, 0]
        return reading

    def epoch(self):
        return Reading({"error": self._epoch.mean()})

    def restart_epoch(self):
        self._epoch.values = [0.0, 0]

    @torch.no_grad()
    def validate(self, batches, *, warn, pause):
        found = []
        for batch in batches:
            pause()
            left, past = self._left_over(batch)
            found.append((float(left.square().mean()) + self._offset, float(self._told_apart(past))))
        error, told_apart = (sum(values) / len(found) for values in zip(*found, strict=True))
        return Validation({"error": error, "told_apart": told_apart}, columns={"renewed": self._offset > 0})

    def keep_weights(self, clock, validation, *, is_best):
        content = {"generator": self.generator.network.state_dict(), "critic": self.critic.network.state_dict()}
        for name in ("last.pt", *(["best.pt"] if is_best else [])):
            write_torch_file(self._folder / "weights" / name, content, kind="toy weights", format_number=1)

    def summary(self, train, validation):
        return f"train error {train['error']:.3f} | val error {validation.figures['error']:.3f}"

    def rehearse(self, batch, stage):
        left, past = self._left_over(batch)
        self.generator.backward(left.square().mean())
        self.critic.backward(self._told_apart(past))


@dataclass(frozen=True)
class ToySystem:
    name = "toy"
    schema = Schema(ToyConfig)
    figures = FIGURES
    step_log = None
    state = ("generator", "generator_optimizer", "critic", "critic_optimizer", "sums")

    def owns(self, config):
        return True

    def plan(self, config, steps_per_epoch, *, progress=None):
        total = config.train.epochs * steps_per_epoch
        curve = RateCurve(start_step=0, end_step=total, peak=0.02, warmup_steps=1)
        first = Stage(name="alone", phase=1, start_step=0, end_step=steps_per_epoch, phase_start_step=0, augment=False, rate=curve)  # fmt: skip
        second = Stage(name="together", phase=2, start_step=steps_per_epoch, end_step=total, phase_start_step=steps_per_epoch, augment=False, rate=curve)  # fmt: skip
        return Schedule((first, second), steps_per_epoch)

    def check(self, config, data, schedule):
        pass

    def start(self, run, *, note):
        torch.manual_seed(run.config.seed)
        return [nn.Linear(PAST, 1), nn.Linear(PAST, 1)]

    def describe(self, start):
        return "generator and critic"

    def memory_bytes(self, run, start):
        return 1000

    def task(self, run, start, folder, report):
        return ToyTask(run, start, folder, report)

    def copies(self, config, folder):
        return None

    def best(self, config):
        return FIGURES[0]

    def remarks(self, rows):
        return [f"{len(rows)} epochs in the history"]

    def results(self, run, weights, messages):
        return {"bytes": float(weights.stat().st_size)}

    def sections(self, run, weights, messages):
        return []
