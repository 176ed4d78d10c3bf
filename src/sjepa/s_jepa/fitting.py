"""Mixture fitting and effective ranks of layers, on seeded samples of training frames.

B batch, T frames, N sampled frames, L layers, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sjepa.core.errors import SharedError
from sjepa.core.random import key
from sjepa.dataset.batch import Batch
from sjepa.dataset.reservoir import FrameSample
from sjepa.features.effective_rank import EFFECTIVE_RANK_FRAMES, effective_rank
from sjepa.features.mel_frontend import MelFrontend
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.gmm.fit import Fit, FitSettings, fit_gmm
from sjepa.gmm.space import MixtureSpace
from sjepa.training.frame_sample import UNREADABLE, Extractor, TrainingFrames
from sjepa.training.report import Report

_EFFECTIVE_RANK_GROUPS = 40
_BAND_FRAMES = 20_000
_SPEAKER_FRAMES = 1000  # per speaker, on average


@dataclass(frozen=True)
class MixtureFitter:
    """Fits mixtures as configured and reports the result."""

    frames: TrainingFrames
    fit_frames: int
    kmeans_iters: int
    em_iters: int
    report: Report

    def fit(
        self,
        extract: Extractor,
        gmm: DiagonalGMM,
        space: MixtureSpace,
        *,
        classes: Extractor | None = None,
        pause: Callable[[], None],
    ) -> None:
        """Fits `space` and `gmm` on features of sampled frames by `extract`. The LDA projection of
        `space` discriminates `classes` (soft class memberships of a frame), or else clusters of the
        frames. `pause` is called between batches.

        Raises SharedError if there are fewer frames than components.
        """
        device, ranks, report = self.frames.device, self.frames.ranks, self.report
        num_components, features = gmm.num_components, gmm.features
        sample, loader = self.frames.draw(self.fit_frames, "gmm frames")
        batches = report.progress(loader.epoch(0), total=loader.num_rounds, label="GMM: reading frames")
        width = space.spliced
        both = extract if classes is None else lambda batch: torch.cat([extract(batch), classes(batch)], dim=-1)
        rows_NC, draw_N = self.frames.gather(_pausing(batches, pause), sample, both)
        frames_NC, class_NK = rows_NC[:, :width], rows_NC[:, width:]
        total = int(sum(ranks.each(len(frames_NC))))
        if total == 0:
            raise SharedError(UNREADABLE)
        if total < num_components:
            raise SharedError(
                f"gmm.fit_frames: {num_components} components cannot be fitted on {total} frames of the training set"
            )
        if space.projects:
            if classes is None:
                centre_ND = space.centre_frame(frames_NC)
                class_NK = (
                    self._mixture(centre_ND, draw_N, gmm).gmm.to(device).posteriors(centre_ND).responsibilities_NK
                )
            space.fit_projection(frames_NC, class_NK, ranks)
        features_NE = space.project(frames_NC)
        fit = self._mixture(features_NE, draw_N, gmm)
        gmm.load_state_dict(fit.gmm.state_dict())
        space.fit_temperature(gmm, features_NE, ranks)
        report.note(
            f"GMM: {num_components} components over {features}, {total:,} frames of "
            f"{len(sample.window_M):,} windows, log-likelihood {fit.log_likelihoods[0]:.3f} → {fit.log_likelihoods[-1]:.3f}"
            + (f", temperature {float(space.temperature):.2f}" if space.is_tempered else "")
        )

    def _mixture(self, rows_ND: Tensor, draw_N: Tensor, gmm: DiagonalGMM) -> Fit:
        """Fits a mixture of the size of `gmm` to these frames. Raises SharedError if it is not
        finite."""
        on = "cpu" if rows_ND.device.type == "mps" else rows_ND.device  # no float64 on mps
        fit = fit_gmm(
            rows_ND.to(on),
            FitSettings(gmm.num_components, key(self.frames.seed, "gmm"), self.kmeans_iters, self.em_iters),
            log=lambda iteration, value: self.report.detail(
                f"GMM: EM {iteration:2d}, log-likelihood {value:.4f} nats per frame"
            ),
            draw_N=draw_N.to(on),
            ranks=self.frames.ranks,
        )
        if not fit.is_finite:
            largest = max(self.frames.ranks.each(float(rows_ND.abs().max()) if len(rows_ND) else 0.0))
            raise SharedError(
                f"GMM: the mixture over {gmm.features} is not finite (largest value of a frame: {largest:.2g})"
            )
        return fit

    def measure_speakers(self, source: Extractor, space: MixtureSpace, *, pause: Callable[[], None]) -> None:
        """Sets the per-speaker statistics of `space` from sampled training frames."""
        wanted = max(self.fit_frames, _SPEAKER_FRAMES * len(space.speaker_S))
        sample, loader = self.frames.draw(wanted, "speaker frames")
        batches = self.report.progress(loader.epoch(0), total=loader.num_rounds, label="speakers: reading frames")

        def spoken(batch: Batch) -> Tensor:  # [B, T, D + 1]: features, then the speaker index
            x_BTD = source(batch)
            number_B11 = space.speaker_number(batch.speaker_B, len(x_BTD))[:, None, None]
            return torch.cat([x_BTD.float(), number_B11.expand(-1, x_BTD.shape[1], 1)], dim=-1)

        rows_NE, _ = self.frames.gather(_pausing(batches, pause), sample, spoken)
        known = space.measure_speakers(rows_NE[:, :-1], rows_NE[:, -1].long(), self.frames.ranks)
        self.report.note(f"{known:,} of {len(space.speaker_S):,} speakers have enough frames for normalisation")


def measure_bands(frames: TrainingFrames, frontend: MelFrontend) -> None:
    """Sets the corpus mean and standard deviation of a log-mel frontend from sampled training
    frames."""
    sample, loader = frames.draw(_BAND_FRAMES, "mel statistics")

    def levels(batch: Batch) -> Tensor:
        return frontend.levels(batch.clean_BS)

    own_NC, _ = frames.gather(loader.epoch(0), sample, levels)
    level_NC = frames.ranks.rows(own_NC)
    if not len(level_NC):
        raise SharedError(UNREADABLE)
    frontend.measure(level_NC)


@dataclass
class LayerEffectiveRanks:
    """Effective rank of every encoder layer, on a fixed sample of 2,000 real frames."""

    frames: TrainingFrames
    _sample: FrameSample | None = None
    _batches: list[Batch] = field(default_factory=list)

    def __call__(self, layers: Extractor) -> tuple[float, ...]:
        """`layers` returns the outputs of all layers, [B, T, L, D]."""
        if self._sample is None:  # a few dozen windows, cached: checks are frequent in short runs
            wanted, groups = EFFECTIVE_RANK_FRAMES, _EFFECTIVE_RANK_GROUPS
            self._sample, loader = self.frames.draw(wanted, "layer check", fewest_groups=groups)
            self._batches = list(loader.epoch(0))
        own_NLD, _ = self.frames.gather(self._batches, self._sample, layers)
        features_NLD = self.frames.ranks.rows(own_NLD)
        if not len(features_NLD):
            raise SharedError(UNREADABLE)
        found = tuple(effective_rank(features_ND) for features_ND in features_NLD.unbind(1))
        return self.frames.ranks.from_main(found)  # avoids rounding differences between ranks


def _pausing(batches: Iterable[Batch], pause: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        pause()
        yield batch
