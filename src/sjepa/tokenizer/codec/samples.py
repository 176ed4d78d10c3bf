"""A clip that is reconstructed now and then: audio, and a picture of both mel spectrograms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.dataset.audio import DecodeError, Waveform, decode_window, probe, resampled_length
from sjepa.dataset.audio_write import write_audio
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.pictures import draw_reconstruction


@dataclass(frozen=True)
class Samples:
    """`waveform` [S] at the codec's rate; audio is written to `folder`, pictures beside it, every
    `every` updates by rank 0."""

    waveform: Waveform
    folder: Path
    every: int
    engine: Engine
    note: Callable[[str], None]

    def write(self, step: int, codec: Codec) -> None:
        """After update `step` (the first is 1), where it is due."""
        if step % self.every or not self.engine.ranks.is_main:
            return
        geometry, groups = codec.encoder.geometry, len(codec.fsq.groups)
        audio, rate = self._reconstructed(codec), geometry.sample_rate
        path = self.folder / f"step{step:07d}.wav"
        write_audio(path, audio, rate)
        draw_reconstruction(self.waveform, audio, rate, path.with_suffix(".jpg"))
        seconds, frames = len(self.waveform) / rate, rate / geometry.hop_samples
        tokens = f"G={groups} fps={frames:.4f} dur={seconds:.2f}s tps={groups * frames:.3f}"
        self.note(f"[TOK] step={step} {tokens}  {path.name}")

    @torch.no_grad()
    def _reconstructed(self, codec: Codec) -> Waveform:
        was_training = codec.training
        codec.eval()
        waveform_BS = torch.from_numpy(self.waveform)[None].to(self.engine.device)
        with self.engine.autocast():
            audio_BS = codec.decode(codec.encode(waveform_BS))[:, : waveform_BS.shape[1]]
        codec.train(was_training)
        return audio_BS[0].float().cpu().numpy()


def read_sample(path: Path, sample_rate: int, most_seconds: float) -> Waveform:
    """The beginning of an audio file, [S] at `sample_rate`. Raises UserError."""
    try:
        with path.open("rb") as file:
            info = probe(file)
            length = min(int(resampled_length(info.samples, info.rate, sample_rate)), round(most_seconds * sample_rate))
            return decode_window(file, info, start=0, length=length, rate=sample_rate)
    except (OSError, DecodeError) as error:
        raise UserError(f"decoder.sample_wav: {path}: {error}") from None
