"""Label-free metric of feature quality: frame retrieval accuracy between a clip and its
pitch-shifted copy.

A pitch shift changes pitch and formants, as another speaker would, but not the content. Retrieval
succeeds if features discriminate sounds and are invariant to the speaker. Unlike the loss, the
metric is comparable across phases, mixtures and models.

B batch, S samples, T frames of a clip, N frames of a batch, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjepa.core.frames import FrameGeometry
from sjepa.core.random import generator, hash_array, key
from sjepa.core.ranks import Ranks
from sjepa.dataset.augment import at_pitch
from sjepa.dataset.batch import Batch

NAME = "pitch_match"
_COLUMN, _SMALL_LOSS = f"val_{NAME}", 0.01
_CLIPS = 64  # approximate number of evaluated clips
_SEMITONES = (2.0, 4.0)  # range of the shift, up or down
_REACH = 1  # tolerance, frames


class PitchMatch:
    """Computed on a subset of the validation clips, the same at every epoch."""

    def __init__(self, num_clips: int, geometry: FrameGeometry) -> None:
        """`num_clips`: size of the validation set, of which about 64 clips are sampled by key."""
        self._geometry = geometry
        self._share = min(1.0, _CLIPS / max(1, num_clips))
        self._shifted: dict[tuple[int, int], Tensor] = {}
        self._found, self._frames = 0, 0

    def other_form(self, batch: Batch) -> Tensor:
        """The batch with the chosen clips pitch-shifted."""
        other_BS = batch.clean_BS.clone()
        for row in self._chosen(batch):
            samples, place = batch.num_samples[row], (int(batch.clip_id_B[row]), batch.window[row])
            if place not in self._shifted:
                self._shifted[place] = self._at_other_pitch(batch.clean_BS[row, :samples].cpu(), *place)
            other_BS[row, :samples] = self._shifted[place].to(other_BS)
        return other_BS

    @torch.no_grad()
    def observe(self, batch: Batch, features_ND: Tensor, unit_N: Tensor, other_ND: Tensor | None) -> None:
        """Adds last-layer features of all real frames of a batch, clip by clip, of the original
        (`features_ND`) and pitch-shifted (`other_ND`) audio."""
        assert other_ND is not None
        counts = [int(self._geometry.frames(samples)) for samples in batch.num_samples]
        clean, other = features_ND.split(counts), other_ND.split(counts)
        for row in self._chosen(batch):
            self._found += found_again(clean[row], other[row])
            self._frames += counts[row]

    def _chosen(self, batch: Batch) -> list[int]:
        """Rows of a batch, by the keys of their clips."""
        if not batch.names:  # a placeholder of silence
            return []
        draws = hash_array(key(0, NAME), batch.clip_id_B.cpu().numpy(), 0) / 2.0**64
        return [row for row, draw in enumerate(draws) if draw < self._share]

    def _at_other_pitch(self, clean_S: Tensor, clip_id: int, window: int) -> Tensor:
        draws = generator(0, NAME, clip_id, window)
        semitones = float(draws.uniform(*_SEMITONES) * draws.choice([-1.0, 1.0]))
        return torch.from_numpy(at_pitch(clean_S.numpy(), semitones, self._geometry.sample_rate))

    def figures(self, num_components: int, width: int, ranks: Ranks) -> dict[str, float]:
        """Retrieval accuracy since the last call, over all ranks."""
        told = ranks.each((self._found, self._frames))
        self._found, self._frames = 0, 0
        found, frames = (sum(column) for column in zip(*told, strict=True))
        return {NAME: found / frames} if frames else {}


def found_again(clean_TD: Tensor, other_TD: Tensor) -> int:
    """Number of frames of the shifted clip whose nearest frame in the original clip, by cosine
    similarity of mean-centred features, is the same frame or an adjacent one."""
    clean_TD, other_TD = (F.normalize(x.float() - x.float().mean(0), dim=1) for x in (clean_TD, other_TD))
    nearest_T = (other_TD @ clean_TD.T).argmax(1)
    return int(((nearest_T - torch.arange(len(nearest_T)).to(nearest_T)).abs() <= _REACH).sum())


def worse_phases(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning if the pitch match at the end of phase 2 is lower than at the end of phase 1."""
    known = [row for row in rows if isinstance(row.get(_COLUMN), int | float)]
    first, second = ([row for row in known if row["phase"] == phase] for phase in (1, 2))
    if not first or not second or second[-1][_COLUMN] >= first[-1][_COLUMN] - _SMALL_LOSS:
        return []
    return [
        f"phase 2 has made the features worse, as far as can be told without labels: at another pitch "
        f"{second[-1][_COLUMN]:.1%} of frames are found again, {first[-1][_COLUMN]:.1%} at the end of phase 1 "
        f"(weights/best_phase1.pt)"
    ]
