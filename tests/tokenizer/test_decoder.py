"""Decoders: length, padding, and the inverse STFT."""

import pytest
import torch

from sjepa.tokenizer.modules.decoder import DecoderShape, InverseSTFT, TokenDecoder
from sjepa.tokenizer.modules.lengths import real_steps

SHAPES = {
    "hifigan": DecoderShape("hifigan", 8, (16, 8, 4), (5, 4)),
    "istft": DecoderShape("istft", 8, (16, 12), (2,), blocks=2, istft_hop=10),
}


def built(kind):
    torch.manual_seed(0)
    decoder = TokenDecoder(SHAPES[kind]).eval()
    for parameter in decoder.parameters():  # biases too
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return decoder


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_n_frames_give_n_hops(kind, frames):
    assert SHAPES[kind].hop == 20
    assert built(kind)(torch.randn(2, frames, 8)).shape == (2, frames * 20)


@pytest.mark.parametrize("strides", [(2,), (3,), (5, 2), (3, 3)])
def test_odd_and_even_strides(strides):
    shape = DecoderShape("hifigan", 3, (4,) * (len(strides) + 1), strides)
    assert TokenDecoder(shape)(torch.randn(1, 6, 3)).shape == (1, 6 * shape.hop)


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(kind):
    decoder, values, lengths = built(kind), torch.randn(3, 9, 8), torch.tensor([9, 4, 1])
    together = decoder(values, lengths)
    for clip, length in enumerate(lengths.tolist()):
        alone = decoder(values[clip : clip + 1, :length])[0]
        assert (together[clip, : length * 20] - alone).abs().max() < 1e-5
        assert not together[clip, length * 20 :].any()
    values[1, 4:] = torch.nan
    assert torch.equal(decoder(values.nan_to_num(), lengths)[1, :80], together[1, :80])


@pytest.mark.parametrize("kind", SHAPES)
def test_it_reaches_a_few_frames(kind):
    """The gradient of one sample is zero outside its receptive field."""
    decoder, values = built(kind), torch.randn(1, 200, 8, requires_grad=True)
    decoder(values)[0, 2000].backward()
    (reached,) = values.grad[0].abs().sum(1).nonzero(as_tuple=True)
    assert reached.min() > 60
    assert reached.max() < 140


@pytest.mark.parametrize("hop", [4, 10, 16])
def test_the_inverse_stft_undoes_torchs_stft(hop):
    torch.manual_seed(0)
    inverse, audio = InverseSTFT(hop), torch.randn(2, 30 * hop)
    size = 4 * hop
    padded = torch.nn.functional.pad(audio, ((size - hop) // 2, (size - hop) // 2))
    spectrum = torch.stft(padded, size, hop, window=torch.hann_window(size), center=False, return_complex=True)
    assert spectrum.shape[2] == 30
    parts = torch.cat([spectrum.real, spectrum.imag], 1)
    found = inverse(parts, real_steps(None, parts))
    inside = slice(2 * hop, -2 * hop)  # at the ends fewer windows overlap
    assert (found[:, inside] - audio[:, inside]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["hifigan", "istft"])
def test_audio_is_made_in_float32_in_any_precision(kind):
    """The last layers, whose rounding would be heard as noise; also of weights in bfloat16."""
    decoder = built(kind)
    values = torch.randn(1, 6, decoder.shape.code_dim)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert decoder(values).dtype == torch.float32
        assert decoder.bfloat16()(values.bfloat16()).dtype == torch.float32


def test_the_basis_of_the_inverse_stft_stays_exact():
    transform = InverseSTFT(16)
    before = transform.basis_NW.clone()
    assert torch.equal(transform.bfloat16().float().basis_NW, before)


def test_a_stride_of_one_is_refused():
    with pytest.raises(ValueError, match="decoder_strides: 1 is below 2"):
        DecoderShape("hifigan", 3, (4, 4, 4), (2, 1))
