"""The S-JEPA training task: masked prediction of soft targets, in stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sjepa.core.distributed import Engine
from sjepa.core.learner import Learner
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.s_jepa.collapse import FEWEST_FRAMES, collapse_signs
from sjepa.s_jepa.metrics import FIGURES, MetricSums
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.step import (
    Forward,
    MaskedFrames,
    Scope,
    Step,
    StepSettings,
    choose_frames,
    divergence,
    frame_losses,
    optimiser_update,
    plain_posteriors,
)
from sjepa.s_jepa.target_maker import TargetMaker
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.validation import Judge, Validator
from sjepa.s_jepa.weights_folder import WeightsFolder
from sjepa.training.checkpoint import Stateful
from sjepa.training.clock import Clock
from sjepa.training.report import Report
from sjepa.training.schedule import Stage
from sjepa.training.task import Reading, Update, Validation


@dataclass(frozen=True)
class TaskParts:
    """Dependencies of the task: `build_optimizer` creates the optimiser of a network; `judges`
    compute extra validation figures from features."""

    engine: Engine
    build_optimizer: Callable[[nn.Module], torch.optim.AdamW]
    maker: TargetMaker
    settings: StepSettings
    weights: WeightsFolder
    judges: tuple[Judge, ...] = ()


class SJEPATask:
    """Network and targets. A new phase has new targets and, as the components change, a new
    head."""

    figures = FIGURES

    def __init__(self, parts: TaskParts, network: SJEPA, targets: Targets, stage: SJEPAStage, report: Report) -> None:
        """`targets` of `stage`: fitted, or blank with state still to be loaded."""
        self.parts, self.targets, self._stage, self._report = parts, targets, stage, report
        self.learner = Learner(parts.engine, network, parts.build_optimizer)
        self._epoch_sums, self._recent_sums = self._new_sums(), self._new_sums()

    @property
    def stage(self) -> SJEPAStage:
        return self._stage

    @property
    def learners(self) -> Sequence[Learner[SJEPA]]:
        return [self.learner]

    @property
    def network(self) -> SJEPA:
        return self.learner.network

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {
            "model": self.network,
            "optimizer": self.learner.optimizer,
            "targets": self.targets,
            "epoch_sums": self._epoch_sums,
            "recent_sums": self._recent_sums,
        }

    def enter(self, stage: Stage, *, pause: Callable[[], None], best_stays: bool) -> None:
        assert isinstance(stage, SJEPAStage)
        if stage.phase != self._stage.phase:
            maker = self.parts.maker
            self._report.note(f"step {stage.start_step}: fitting the targets of {stage.name}")
            targets = maker.fitted(stage, self.network, is_trained=True, pause=pause)
            self.parts.weights.close_phase(self._stage.phase, stays_best=best_stays)
            self.targets = targets
            self._renew_head(stage.num_clusters)
        self._stage = stage

    def prepare(self, step: int) -> bool:
        since = step - self._stage.phase_start_step
        renewed = self._renew_targets_if_due(step, since)
        return self._choose_layer_if_due(step, since) or renewed

    def _renew_targets_if_due(self, step: int, since: int) -> bool:
        """With `gmm.hold_steps`: copies the encoder and refits the targets at the start of a
        round."""
        if not self.targets.renewal_due(since):
            return False
        self._report.note(f"step {step}: the next round of {self._stage.name}")
        self.targets.renew(self.network.encoder)
        self._refit()
        return True

    def _choose_layer_if_due(self, step: int, since: int) -> bool:
        """Selects the target layer if a check is due; returns whether it changed."""
        targets, maker = self.targets, self.parts.maker
        if not targets.layer_check_due(since) or not maker.choose_layer(targets):
            return False
        self._report.note(f"step {step}: targets come from layer {targets.layer} now")
        if maker.refit_on_switch:
            self._refit()
        else:
            maker.measure_speakers(targets)
        return True

    def _refit(self) -> None:
        self.parts.maker.refit(self.targets, self._stage, self.network)
        self._renew_head(self._stage.num_clusters)

    def _renew_head(self, num_clusters: int) -> None:
        """Re-initialises the head for new components and resets the metrics."""

        def change(network: SJEPA) -> None:
            torch.manual_seed(key(self.parts.settings.seed, "head", num_clusters))
            network.renew_head(num_clusters)

        self.learner.rebuild(change, forget="head.")
        self.learner.model.train()
        self._epoch_sums, self._recent_sums = self._new_sums(), self._new_sums()

    def _new_sums(self) -> MetricSums:
        return MetricSums(self.network.shape.num_clusters, self.parts.engine.device)

    def update(self, window: Sequence[Batch], *, step: int, rate: float, news: bool) -> Update:
        self.learner.set_rate(rate)
        own = Step(step, self._stage, self.parts.settings, news)
        update = optimiser_update(self.learner, self.targets, window, own, self._recent_sums)
        if update.made:
            since = step - self._stage.phase_start_step
            self.targets.after_update(self.network.encoder, since, self.parts.engine.ranks)
        return update

    def recent(self) -> Reading:
        metrics = self._recent_sums.read()
        signs = collapse_signs(metrics, self._stage.num_clusters) if metrics.frames >= FEWEST_FRAMES else []
        self._epoch_sums.merge(self._recent_sums)
        self._recent_sums.reset()
        return Reading(metrics.named(), tuple(signs))

    def epoch(self) -> Reading:
        metrics = self._epoch_sums.read()
        signs = collapse_signs(metrics, self._stage.num_clusters) if metrics.frames else []
        return Reading(metrics.named(), tuple(signs))

    def restart_epoch(self) -> None:
        self._epoch_sums.reset()

    def validate(
        self, batches: Iterable[Batch], *, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> Validation:
        validator = Validator(self._forward(), self.network.encoder, self.targets, self.parts.judges)
        found = validator.measure(batches, visible=self._stage.visible_loss, warn=warn, pause=pause)
        signs = collapse_signs(
            found.metrics,
            self._stage.num_clusters,
            spreads=found.spreads,
            effective_ranks=found.effective_ranks,
        )
        moved = self.targets.figures()
        columns = {
            "clusters_used": found.metrics.clusters_used,
            "active_layer": "" if moved.layer is None else moved.layer,
            **{f"erank_{layer}": value for layer, value in enumerate(found.effective_ranks)},
        }
        details = {
            "reseeded": moved.reseeded,
            **{f"spread_{layer}": value for layer, value in enumerate(found.spreads)},
            **{f"layer_score_{layer}": value for layer, value in enumerate(moved.layer_scores)},
        }
        return Validation({**found.metrics.named(), **found.judged}, tuple(signs), columns, details)

    def keep_weights(self, clock: Clock, validation: Validation, *, is_best: bool) -> None:
        progress = {"epoch": clock.epoch, "step": clock.step, "validation": dict(validation.figures)}
        self.parts.weights.save(self.network, self.targets, self._stage, progress, is_best=is_best)

    def summary(self, train: Mapping[str, float], validation: Validation) -> str:
        val, layer = validation.figures, validation.columns["active_layer"]
        moved = f", layer {layer}, {validation.details['reseeded']} re-seeded" if layer != "" else ""
        judged = "".join(
            f", {figure.name} {val[figure.name]:.3f}"
            for figure in self.figures
            if figure.where == "validation" and figure.name in val
        )
        return (
            f"train loss {train['loss']:.4f} kl {train['kl']:.4f} top1 {train['top1']:.3f} | val kl {val['kl']:.4f} "
            f"top1 {val['top1']:.3f} entropy {val['entropy_bits']:.2f} bit (targets {val['target_entropy_bits']:.2f}), "
            f"{validation.columns['clusters_used']:.0f} components in use{moved}{judged}"
        )

    def rehearse(self, batch: Batch, stage: Stage) -> None:
        """Dry run: forward and backward as in `stage`; another phase uses blank targets."""
        assert isinstance(stage, SJEPAStage)
        settings = self.parts.settings
        batch = batch.or_silence(settings.geometry.fewest_samples).to(self.parts.engine.device)
        frames = choose_frames(batch, mask_key=key(settings.seed, "probe"), settings=settings)
        if stage.phase != self._stage.phase:
            self._rehearse_phase(stage, batch, frames)
            return
        posteriors, scope = plain_posteriors(self.targets, batch), Scope(stage.visible_loss, spectral=stage.spectrum)
        losses = frame_losses(self._forward(), batch, frames, posteriors, scope)
        self.learner.backward(losses.total() / max(1, len(losses.masked.kl_N)))
        sums = self._new_sums()
        losses.count_in(sums)
        sums.read()  # waits for the device

    def _rehearse_phase(self, stage: SJEPAStage, batch: Batch, frames: MaskedFrames) -> None:
        """Dry run for another phase: the current logits are averaged and expanded to its number of
        components."""
        targets = self.parts.maker.blank(stage, self.network.encoder)
        visible_N = frames.visible_N if stage.visible_loss else frames.visible_N[:0]
        with self.parts.engine.autocast():
            targets_NK = plain_posteriors(targets, batch)(torch.cat([frames.masked_N, visible_N]))
            length_B = torch.tensor(batch.num_samples, device=self.parts.engine.device)
            logits = self.learner.model(batch.heard_BS, length_B, frames.mask_BT, frames.masked_N, visible_N, ())
            logits_N1 = torch.cat([logits.masked_NK, logits.visible_NK]).mean(dim=1, keepdim=True)
        self.learner.backward(divergence(targets_NK, logits_N1 + torch.zeros_like(targets_NK)).kl_N.mean())

    def _forward(self) -> Forward:
        return Forward(self.parts.engine, self.learner.model, self.parts.settings)
