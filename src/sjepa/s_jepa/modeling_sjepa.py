"""The encoder of sjepa with a log-mel frontend, as a model of the transformers library.

Requires only torch and transformers, and is stored with the weights. To load:
AutoModel.from_pretrained(folder, trust_remote_code=True), or
pipeline("feature-extraction", model=folder, trust_remote_code=True).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertForCTC, HubertModel, Pipeline

_STEPS = 2  # mel windows per frame


class SJEPAConfig(HubertConfig):
    """HuBERT's configuration with the parameters of the log-mel bands. `feat_extract_norm` is
    "mel", which HubertModel refuses: it would put random convolutions in place of the bands."""

    model_type = "sjepa"

    def __init__(
        self,
        mel_bands: int = 40,
        mel_window: int = 240,
        mel_hop: int = 160,
        mel_fft: int = 512,
        mel_power_floor: float = 1e-8,
        mel_statistics: str = "both",
        mel_least_deviation: float = 1e-3,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.mel_bands, self.mel_window, self.mel_hop, self.mel_fft = mel_bands, mel_window, mel_hop, mel_fft
        self.mel_power_floor, self.mel_statistics = mel_power_floor, mel_statistics
        self.mel_least_deviation = mel_least_deviation


class LogMel(nn.Module):
    """Waveforms [batch, samples] to normalised log-mel bands [batch, channels, frames]."""

    def __init__(self, config: SJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.samples: Tensor | None = None  # length of each clip without padding; None: no padding
        channels = _STEPS * config.mel_bands
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("deviation_C", torch.ones(channels))
        self.register_buffer("window", torch.zeros(config.mel_window))
        self.register_buffer("mel_FM", torch.zeros(config.mel_fft // 2 + 1, config.mel_bands))

    def forward(self, input_values: Tensor) -> Tensor:
        config = self.config
        windows = input_values.float().unfold(1, config.mel_window, config.mel_hop) * self.window
        power = torch.fft.rfft(windows, n=config.mel_fft).abs().square() @ self.mel_FM.float()
        level = power.clamp(min=config.mel_power_floor).log()
        frames = level.shape[1] // _STEPS
        level = level[:, : frames * _STEPS].reshape(len(level), frames, -1)
        forms = []
        if config.mel_statistics != "clip":
            forms.append((level - self.mean_C.float()) / self.deviation_C.float())
        if config.mel_statistics != "corpus":
            mean, deviation = self._own(level)
            forms.append((level - mean) / deviation)
        return torch.cat(forms, dim=-1).transpose(1, 2).to(self.mean_C.dtype)

    def _freeze_parameters(self) -> None:
        """For `freeze_feature_encoder`: there is nothing to train here."""

    def _own(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each clip's real frames."""
        hop, field = _STEPS * self.config.mel_hop, self.config.mel_window + (_STEPS - 1) * self.config.mel_hop
        count = torch.full((len(level),), level.shape[1], device=level.device)
        if self.samples is not None:
            count = ((self.samples - field) // hop + 1).clamp(min=1)
        real = (torch.arange(level.shape[1], device=level.device) < count[:, None])[..., None]
        mean = (level * real).sum(1, keepdim=True) / count[:, None, None]
        square = ((level - mean) * real).square().sum(1, keepdim=True) / count[:, None, None]
        return mean, square.sqrt().clamp(min=self.config.mel_least_deviation)


@contextmanager
def _built_as_hubert(config: SJEPAConfig) -> Iterator[None]:
    """While HuBERT's own constructor builds the convolutions that are then replaced."""
    own, config.feat_extract_norm = config.feat_extract_norm, "group"
    try:
        yield
    finally:
        config.feat_extract_norm = own


class SJEPAModel(HubertModel):
    """HuBERT with log-mel bands instead of the convolutional frontend."""

    config_class = SJEPAConfig

    def __init__(self, config: SJEPAConfig) -> None:
        with _built_as_hubert(config):
            super().__init__(config)
        self.feature_extractor = LogMel(config)
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        """`attention_mask`: 1 at a clip's samples, 0 at padding, which is then ignored."""
        self.feature_extractor.samples = None if attention_mask is None else attention_mask.sum(-1)
        if attention_mask is not None:
            input_values = input_values.masked_fill(attention_mask == 0, 0.0)
        return super().forward(input_values, attention_mask=attention_mask, **others)


class SJEPAForCTC(HubertForCTC):
    """SJEPAModel with a CTC head, for speech recognition."""

    config_class = SJEPAConfig

    def __init__(self, config: SJEPAConfig) -> None:
        with _built_as_hubert(config):
            super().__init__(config)
        self.hubert = SJEPAModel(config)
        self.post_init()


class SJEPAFeatures(Pipeline):
    """The pipeline "feature-extraction" for waveforms (float32 at 16 kHz, one dimension): a list of
    frames."""

    _load_processor = False
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = True

    def _sanitize_parameters(self, return_tensors: bool | None = None, **others: Any) -> tuple[dict, dict, dict]:
        return others, {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, inputs: Any, **others: Any) -> Any:
        rate = self.feature_extractor.sampling_rate
        return self.feature_extractor(inputs, sampling_rate=rate, return_tensors="pt", **others)

    def _forward(self, model_inputs: Any, **others: Any) -> Any:
        return self.model(**model_inputs)

    def postprocess(self, model_outputs: Any, return_tensors: bool = False) -> Any:
        features = model_outputs[0]
        return features if return_tensors else features.tolist()
