"""Frame-level statistics over a test set: entropies, units, components. N frames of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from sjepa.core.frames import FrameGeometry
from sjepa.core.tensors import to_device
from sjepa.dataset.batch import Batch
from sjepa.dataset.windows import Windows
from sjepa.evaluation.labels import SILENCES, Span, phones_at
from sjepa.s_jepa.step import Forward
from sjepa.s_jepa.targets.base import Targets
from sjepa.s_jepa.units.components import ComponentReport
from sjepa.s_jepa.units.nearest import NearestFrames
from sjepa.s_jepa.units.readings import THRESHOLDS_BITS, EntropyHistogram, entropy_bits, read_frames

_PLACES = 40  # nearest frames of a component whose places are kept


@dataclass(frozen=True)
class TimedPhones:
    """Time-aligned phones of a data set: one list per clip, empty if unknown."""

    spans: list[list[Span]]
    windows: Windows
    geometry: FrameGeometry

    @cached_property
    def phones(self) -> list[str]:
        return sorted({span.phone for spans in self.spans for span in spans})

    @cached_property
    def _number(self) -> dict[str, int]:
        return {phone: index for index, phone in enumerate(self.phones)}

    def frames(self, samples: int) -> int:
        return int(self.geometry.frames(samples))

    def numbers(self, batch: Batch, *, silence: bool = True) -> NDArray[np.int64]:
        """Index in `phones` of every real frame of a batch, clip by clip; −1 if unknown, and for
        silences with `silence=False`."""
        found: list[int] = []
        for window, samples in zip(batch.window, batch.num_samples, strict=True):
            spans = self.spans[int(self.windows.clip_N[window])]
            centres = self.geometry.centres(int(self.windows.start_N[window]), self.geometry.frames(samples))
            found += [
                -1 if not silence and phone in SILENCES else self._number.get(phone, -1)
                for phone in phones_at(spans, centres)
            ]
        return np.array(found, np.int64)


@dataclass(frozen=True)
class Survey:
    """Entropies of encoder, predictor and targets, component statistics, and the places (window,
    frame of the window) of the frames nearest to every component."""

    encoder: EntropyHistogram
    predictor: EntropyHistogram
    targets: EntropyHistogram
    components: ComponentReport
    places: NearestFrames

    def figures(self) -> dict[str, float]:
        """Figures for results.csv."""
        figures: dict[str, float] = {}
        for name, histogram in (("encoder", self.encoder), ("predictor", self.predictor), ("targets", self.targets)):
            figures[f"{name}_entropy_bits"] = histogram.mean_bits
            for threshold, share in zip(THRESHOLDS_BITS, histogram.shares_above, strict=True):
                figures[f"{name}_above_{threshold:g}_bits"] = share
        figures["units_used"] = float((self.components.unit_count_K > 0).sum())
        if self.components.has_phones:
            figures |= {"unit_purity": self.components.purity, "unit_pnmi": self.components.pnmi}
        return figures


def survey(forward: Forward, targets: Targets, batches: Iterable[Batch], *, phones: TimedPhones) -> Survey:
    """Computes the statistics over all frames of `batches`; unreadable clips are skipped. `model`
    and `targets` must be on the engine's device."""
    engine = forward.engine
    forward.model.eval()
    components = targets.gmm.num_components
    encoder, predictor, aims = (EntropyHistogram(components) for _ in range(3))
    places = NearestFrames(components, _PLACES, 2)
    found = Survey(encoder, predictor, aims, ComponentReport(components, phones.phones), places)
    for batch in batches:
        if not batch.num_samples:
            continue
        batch = batch.to(engine.device)
        readings = read_frames(forward, batch)
        found.encoder.add(entropy_bits(readings.encoder_NK))
        found.predictor.add(entropy_bits(readings.predictor_NK))
        with engine.autocast():
            features_ND = targets.features(
                batch.clean_BS, to_device(batch.num_samples, engine.device), readings.frame_N, batch.speaker_B
            )
        posterior_NK = targets.space.posteriors(targets.gmm, features_ND)
        found.targets.add(torch.special.entr(posterior_NK).sum(1) / math.log(2))
        log_joint_NK = targets.gmm.log_joint(features_ND)
        found.components.add(readings.encoder_NK.argmax(1), posterior_NK, log_joint_NK, phones.numbers(batch))
        found.places.add(log_joint_NK, *_places(batch, forward.settings.geometry))
    return found


def _places(batch: Batch, geometry: FrameGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Window and frame number of every real frame of a batch, clip by clip, [N] each."""
    counts = torch.tensor([int(geometry.frames(samples)) for samples in batch.num_samples])
    frames = torch.cat([torch.arange(int(count)) for count in counts])
    return torch.tensor(batch.window).repeat_interleave(counts), frames
