"""The codec: encoder, quantisation and decoder. B batch, S samples, T frames, D dimensions,
G groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sjepa.tokenizer.codec.fsq import FSQ
from sjepa.tokenizer.codec.whitening import Whitening
from sjepa.tokenizer.modules.decoder import DecoderShape, TokenDecoder
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.modules.lengths import real_steps


class Codec(nn.Module):
    """The encoder takes no gradient and stays in evaluation mode, unless `train_encoder`."""

    def __init__(self, encoder: TokenEncoder, fsq: FSQ, decoder: DecoderShape, *, train_encoder: bool = False) -> None:
        super().__init__()
        if decoder.hop != encoder.geometry.hop_samples:
            raise ValueError(
                f"the decoder makes {decoder.hop} samples of a frame, the encoder takes {encoder.geometry.hop_samples}"
            )
        self.encoder, self.fsq, self.decoder = encoder.requires_grad_(train_encoder), fsq, TokenDecoder(decoder)
        self.train_encoder, self.whitening = train_encoder, Whitening(encoder.shape.width)
        self.train(self.training)

    def train(self, mode: bool = True) -> Codec:
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    @property
    def learned(self) -> nn.Module:
        """What is trained: the decoder, or all of it."""
        return self if self.train_encoder else self.decoder

    def reconstructed(self, model: Any, waveform_BS: Tensor, num_samples_B: Tensor | None) -> Tensor:
        """Audio [B, T · hop] of audio by `model`, the `learned` module or its wrapped form; with
        its gradient."""
        if self.train_encoder:
            return model(waveform_BS, num_samples_B)  # type: ignore[no-any-return]
        values_BTD = self.fsq.values(self.codes(waveform_BS, num_samples_B))
        return decoded(model, values_BTD, num_samples_B, self.encoder.geometry.hop_samples)

    def features(self, waveform_BS: Tensor, num_samples_B: Tensor | None = None) -> Tensor:
        """What is quantised, [B, T, D] float32."""
        return self.whitening(self.encoder(waveform_BS, num_samples_B).features_BTD)  # type: ignore[no-any-return]

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor | None = None) -> Tensor:
        """[B, T · hop]: audio through the quantiser, whose gradient is straight-through."""
        values_BTD = self.fsq.quantised(self.features(waveform_BS, num_samples_B))
        return decoded(self.decoder, values_BTD, num_samples_B, self.encoder.geometry.hop_samples)

    @torch.no_grad()
    def codes(self, waveform_BS: Tensor, num_samples_B: Tensor | None = None) -> Tensor:
        """int64 [B, T, D]. `waveform_BS` float32 in −1…1 at the encoder's rate; `num_samples_B`:
        lengths without padding (None: all of it)."""
        return self.fsq.codes(self.features(waveform_BS, num_samples_B))

    def encode(self, waveform_BS: Tensor, num_samples_B: Tensor | None = None) -> Tensor:
        """Tokens, int32 [B, T, G]; those of padding mean nothing."""
        return self.fsq.pack(self.codes(waveform_BS, num_samples_B))

    def decode(self, tokens_BTG: Tensor, num_samples_B: Tensor | None = None) -> Tensor:
        """Audio [B, S] of tokens, float32; `num_samples_B` (None: all frames): zero after them."""
        values_BTD, hop = self.fsq.values(self.fsq.unpack(tokens_BTG)), self.encoder.geometry.hop_samples
        return decoded(self.decoder, values_BTD, num_samples_B, hop)


def decoded(decoder: nn.Module, values_BTD: Tensor, num_samples_B: Tensor | None, hop: int) -> Tensor:
    """[B, T · hop]: the audio of a decoder, perhaps a wrapped one, zero after the end of each
    clip."""
    if num_samples_B is None:
        return decoder(values_BTD)  # type: ignore[no-any-return]
    audio_BS = decoder(values_BTD, -(-num_samples_B // hop))
    return real_steps(num_samples_B, audio_BS[:, None]).keep(audio_BS[:, None])[:, 0]
