"""Measures a codec on recordings, beside what its tokens are worth without their order, a decoder
that was not trained, and other codecs. B batch, S samples, T frames, G groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjepa.core.random import generator, key
from sjepa.core.tensors import to_device
from sjepa.dataset.audio import Waveform
from sjepa.dataset.batch import Batch, Failure
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.others import OtherCodec
from sjepa.tokenizer.codec.quality import MEASURES, Quality
from sjepa.tokenizer.codec.usage import TokenUsage
from sjepa.tokenizer.modules.decoder import TokenDecoder

TRAINED, SHUFFLED, UNTRAINED = "this codec", "tokens shuffled in time", "untrained decoder"


class Pair(NamedTuple):
    """A piece of a recording, and what each system makes of it, by name, [S] each."""

    name: str
    original: Waveform
    made: dict[str, Waveform]


@dataclass
class Comparison:
    """What was found: by system and measure, a value per piece; use of the tokens; seconds of
    audio, and seconds spent on encoding and decoding."""

    usage: TokenUsage
    bits: dict[str, float]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    audio: float = 0.0
    encoding: float = 0.0
    decoding: float = 0.0

    def add(self, pair: Pair, quality: Quality) -> None:
        self.names.append(pair.name)
        for system, made_S in pair.made.items():
            for measure, value in quality.of(made_S, pair.original).items():
                self.values.setdefault(system, {}).setdefault(measure, []).append(value)

    def mean(self, system: str, measure: str) -> tuple[float, float, int]:
        """Mean and standard deviation over the pieces for which it is defined, and their number."""
        values = np.array(self.values[system][measure])
        values = values[np.isfinite(values)]
        if not len(values):
            return math.nan, math.nan, 0
        return float(values.mean()), float(values.std()), len(values)

    def table(self) -> str:
        """A line per system, with the means."""
        shown = [measure for measure in MEASURES if any(self.mean(name, measure.name)[2] for name in self.values)]
        width = max(len(name) for name in self.values)
        lines = [" " * width + f" {'bit/s':>8}" + "".join(f" {measure.short:>8}" for measure in shown)]
        for name in self.values:
            means = "".join(f" {self.mean(name, measure.name)[0]:>8.3f}" for measure in shown)
            lines.append(f"{name:<{width}} {self.bits[name]:>8,.0f}{means}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Systems:
    """The codec, in evaluation mode and on its device, and what it is compared with."""

    codec: Codec
    others: Sequence[OtherCodec]
    seed: int

    def compare(
        self, batches: Iterable[Batch], *, warn: Callable[[Failure], None], keep: Callable[[Pair], None]
    ) -> Comparison:
        """On all pieces of a data set, each of which is also given to `keep`."""
        geometry, fsq = self.codec.encoder.geometry, self.codec.fsq
        own = fsq.bits_per_frame * geometry.sample_rate / geometry.hop_samples
        bits = {name: own for name in (TRAINED, SHUFFLED, UNTRAINED)}
        found = Comparison(
            TokenUsage(fsq.vocabulary), bits | {other.name: other.bits_per_second for other in self.others}
        )
        quality, untrained = Quality(geometry.sample_rate), self._untrained()
        for batch in batches:
            for failure in batch.failures:
                warn(failure)
            if batch.num_samples:
                for pair in self._pairs(batch, untrained, found):
                    found.add(pair, quality)
                    keep(pair)
        return found

    def _untrained(self) -> TokenDecoder:
        torch.manual_seed(key(self.seed, "untrained decoder"))
        return TokenDecoder(self.codec.decoder.shape).eval().to(next(self.codec.parameters()).device)

    @torch.no_grad()
    def _pairs(self, batch: Batch, untrained: TokenDecoder, found: Comparison) -> Iterator[Pair]:
        codec, geometry = self.codec, self.codec.encoder.geometry
        rate, device = geometry.sample_rate, next(self.codec.parameters()).device
        batch = batch.to(device)
        samples_B = to_device(batch.num_samples, device)
        begun = time.perf_counter()
        tokens_BTG = codec.encode(batch.clean_BS, samples_B).cpu()
        encoded = time.perf_counter()
        made = {TRAINED: _numpy(codec.decode(tokens_BTG.to(device), samples_B))}
        found.decoding += time.perf_counter() - encoded
        found.encoding += encoded - begun
        found.audio += batch.total_samples / rate
        mixed_BTG = tokens_BTG.clone()
        for row, samples in enumerate(batch.num_samples):
            frames = geometry.frames(samples)
            found.usage.add(tokens_BTG[row, :frames].numpy())
            order_T = generator(self.seed, "shuffled", batch.window[row]).permutation(frames)
            mixed_BTG[row, :frames] = tokens_BTG[row, torch.from_numpy(order_T)]
        made[SHUFFLED] = _numpy(codec.decode(mixed_BTG.to(device), samples_B))
        values_BTD = codec.fsq.values(codec.fsq.unpack(tokens_BTG)).to(device)
        made[UNTRAINED] = _numpy(untrained(values_BTD, -(-samples_B // geometry.hop_samples)))
        originals = batch.clean_BS.cpu().numpy()
        for row, samples in enumerate(batch.num_samples):
            original_S = originals[row, :samples]
            audio = {name: own_BS[row, :samples] for name, own_BS in made.items()}
            audio |= {other.name: other.at(original_S, rate) for other in self.others}
            yield Pair(batch.names[row], original_S, audio)


def _numpy(audio_BS: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return audio_BS.float().cpu().numpy()
