"""Creation, fitting and refitting of the targets of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sjepa.core.distributed import Engine
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.features.mfcc import NUM_FEATURES
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.space import MixtureSpace, SpaceSettings
from sjepa.modules.ema import EMAEncoder
from sjepa.s_jepa.fitting import LayerEffectiveRanks, MixtureFitter
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.modules.encoder import Encoder
from sjepa.s_jepa.plan import SJEPAStage
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.targets.frozen import MFCC_FEATURES, MFCCTargets
from sjepa.s_jepa.targets.layer_choice import LayerChoice
from sjepa.s_jepa.targets.online import OnlineSettings, OnlineTargets


def _no_pause() -> None:
    pass


@dataclass(frozen=True)
class TargetMaker:
    """Creates the targets of a stage and fits their mixture in the `space` of the stage. `keep` is
    called with every fitted mixture. `speakers`: speaker keys of the training set.
    `by_predictions`: the LDA classes of phase 2 are the network's predictions, not clusters of the
    layer."""

    engine: Engine
    space: Callable[[SJEPAStage], SpaceSettings]
    fitter: MixtureFitter
    layer_effective_ranks: LayerEffectiveRanks
    online: OnlineSettings
    first_layer: int
    layer_smoothing: float
    refit_on_switch: bool
    keep: Callable[[DiagonalGMM, SJEPAStage], None]
    speakers: Sequence[int] = ()
    by_predictions: bool = False

    def fitted(
        self,
        stage: SJEPAStage,
        network: SJEPA,
        *,
        given: DiagonalGMM | None = None,
        is_trained: bool = False,
        pause: Callable[[], None] = _no_pause,
    ) -> Targets:
        """The initial targets of a stage: a mixture fitted on the training set, or the `given` one;
        for online targets also an EMA encoder initialised from the encoder. `is_trained`: the head
        has been trained. `pause` is called between batches and may raise."""
        targets = self.blank(stage, network.encoder)
        if given is None:
            self.refit(targets, stage, network if is_trained else None, pause=pause)
        else:
            targets.gmm.load_state_dict(given.state_dict())
            self.measure_speakers(targets, pause=pause)
            self.keep(targets.gmm, stage)
        return targets

    def refit(
        self, targets: Targets, stage: SJEPAStage, trained: SJEPA | None, *, pause: Callable[[], None] = _no_pause
    ) -> None:
        """Refits the mixture on the active layer; its components are then new. `trained`: a network
        whose predictions may serve as LDA classes."""

        def frames(batch: Batch) -> Tensor:  # [B, T, C]
            with self.engine.autocast():
                return targets.frames(batch.clean_BS, self._samples(batch), batch.speaker_B)

        self.measure_speakers(targets, pause=pause)
        classes = None
        if trained is not None and self.by_predictions and stage.targets == "online":
            classes = _predictions(self.engine, trained.in_one_piece())
        self.fitter.fit(frames, targets.gmm, targets.space, classes=classes, pause=pause)
        self.keep(targets.gmm, stage)

    def measure_speakers(self, targets: Targets, *, pause: Callable[[], None] = _no_pause) -> None:
        """Measures per-speaker statistics of the active layer, with speaker normalisation only."""

        def source(batch: Batch) -> Tensor:  # [B, T, D]
            with self.engine.autocast(), torch.no_grad():
                return targets.source(batch.clean_BS, self._samples(batch))

        if targets.space.is_by_speaker:
            self.fitter.measure_speakers(source, targets.space, pause=pause)

    def _samples(self, batch: Batch) -> Tensor:
        return to_device(batch.num_samples, self.engine.device)

    def blank(self, stage: SJEPAStage, encoder: Encoder) -> Targets:
        """Unfitted targets of a stage, into which a state can be loaded."""
        source, width = target_source(stage, encoder.shape.width)
        settings = self.space(stage)
        space = MixtureSpace(settings, width, speakers=self.speakers)
        gmm = DiagonalGMM(stage.num_clusters, settings.width(width), features=settings.describe(source))
        if stage.targets == "mfcc":
            return self.engine.to_device(MFCCTargets(gmm, encoder.geometry, space))
        choice = LayerChoice(self.first_layer % encoder.num_layers, smoothing=self.layer_smoothing)
        return self.engine.to_device(OnlineTargets(gmm, EMAEncoder(encoder), choice, self.online, space))

    def choose_layer(self, targets: Targets) -> bool:
        """Selects the active layer by effective rank; returns whether it changed."""

        def layers(batch: Batch) -> Tensor:  # [B, T, L, D]
            with self.engine.autocast():
                return torch.stack(targets.encoder(batch.clean_BS, self._samples(batch)).layers, dim=2)

        return targets.choose_layer(self.layer_effective_ranks(layers))


def _predictions(engine: Engine, network: SJEPA) -> Callable[[Batch], Tensor]:
    """Posteriors of the head on unmasked encoder output, [B, T, K]."""

    @torch.no_grad()
    def predict(batch: Batch) -> Tensor:
        was_training = network.training
        network.eval()
        with engine.autocast():
            encoded = network.encoder(batch.clean_BS, to_device(batch.num_samples, engine.device))
            logits_BTK = network.head(encoded.features_BTD)
        network.train(was_training)
        return logits_BTK.float().softmax(-1)

    return predict


def target_source(stage: SJEPAStage, encoder_width: int) -> tuple[str, int]:
    """Name and feature dimension of the source of a stage's targets."""
    return (MFCC_FEATURES, NUM_FEATURES) if stage.targets == "mfcc" else (f"encoder{encoder_width}", encoder_width)
