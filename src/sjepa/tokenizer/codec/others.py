"""Published neural codecs, from folders of transformers. S samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sjepa.core.errors import UserError
from sjepa.dataset.audio import Waveform, resample


@dataclass(frozen=True)
class OtherCodec:
    """`reconstruct`: audio [S] at `sample_rate` (Hz) through its tokens."""

    name: str
    sample_rate: int
    bits_per_second: float
    reconstruct: Callable[[Waveform], Waveform]

    def at(self, waveform_S: Waveform, sample_rate: int) -> Waveform:
        """Audio at another rate, of the same length."""
        made_S = self.reconstruct(resample(waveform_S, sample_rate, self.sample_rate))
        made_S = resample(made_S, self.sample_rate, sample_rate)[: len(waveform_S)]
        return made_S if len(made_S) == len(waveform_S) else _longer(made_S, len(waveform_S))


def load_other(folder: Path, bits_per_second: float, device: torch.device) -> OtherCodec:
    """An EncodecModel or MimiModel at its rate nearest to `bits_per_second`. Raises UserError if
    transformers is not installed or the folder holds no such model."""
    try:
        import transformers
    except ImportError:
        raise UserError("codecs: other codecs need the package transformers: pip install transformers") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"codecs: {folder}: no folder of transformers (without config.json)")
    try:
        transformers.utils.logging.disable_progress_bar()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in _LOADERS:
            raise UserError(f"codecs: {folder}: a {config.model_type} model, not {' or '.join(_LOADERS)}")
        kind, adapt = _LOADERS[config.model_type]
        model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True).eval().to(device)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"codecs: {folder}: {' '.join(str(error).split())[:200]}") from None
    bits, reconstruct = adapt(model, config, bits_per_second)
    name = f"{config.model_type} ({folder.name})"
    return OtherCodec(name, config.sampling_rate, bits, lambda waveform_S: _run(reconstruct, waveform_S, device))


@torch.no_grad()
def _run(reconstruct: Callable[[torch.Tensor], torch.Tensor], waveform_S: Waveform, device: torch.device) -> Waveform:
    return reconstruct(torch.from_numpy(waveform_S)[None, None].to(device))[0, 0].float().cpu().numpy()  # type: ignore[no-any-return]


def _encodec(model: Any, config: Any, wanted: float) -> tuple[float, Callable[[torch.Tensor], torch.Tensor]]:
    bandwidth = _nearest([float(value) for value in config.target_bandwidths], wanted / 1000)

    def reconstruct(audio_B1S: torch.Tensor) -> torch.Tensor:
        audio_B1S = audio_B1S.expand(-1, config.audio_channels, -1)
        found = model.encode(audio_B1S, bandwidth=bandwidth)
        return model.decode(found.audio_codes, found.audio_scales)[0]  # type: ignore[no-any-return]

    return bandwidth * 1000, reconstruct


def _mimi(model: Any, config: Any, wanted: float) -> tuple[float, Callable[[torch.Tensor], torch.Tensor]]:
    per_quantizer = config.frame_rate * math.log2(config.codebook_size)
    number = round(_nearest([float(count) for count in range(1, config.num_quantizers + 1)], wanted / per_quantizer))

    def reconstruct(audio_B1S: torch.Tensor) -> torch.Tensor:
        return model.decode(model.encode(audio_B1S, num_quantizers=number).audio_codes)[0]  # type: ignore[no-any-return]

    return number * per_quantizer, reconstruct


_LOADERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "encodec": ("EncodecModel", _encodec),
    "mimi": ("MimiModel", _mimi),
}


def _nearest(values: list[float], wanted: float) -> float:
    """By ratio."""
    return min(values, key=lambda value: abs(math.log(value / wanted)))


def _longer(waveform_S: Waveform, length: int) -> Waveform:
    return torch.nn.functional.pad(torch.from_numpy(waveform_S), (0, length - len(waveform_S))).numpy()  # type: ignore[no-any-return]
