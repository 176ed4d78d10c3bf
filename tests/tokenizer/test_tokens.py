"""Token files, and audio of any length."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa.config.load import load_config
from sjepa.core.errors import UserError
from sjepa.tokenizer.codec.fsq import FSQ
from sjepa.tokenizer.codec.model import identity, token_model
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.tokens import (
    Tokens,
    check_model,
    decode_pieces,
    encode_windows,
    read_tokens,
    window_frames,
    write_tokens,
)
from sjepa.tokenizer.method import network_shape
from sjepa.tokenizer.modules.decoder import DecoderShape
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.schema import SCHEMA
from tests.tokenizer.runs import SMALL

DECODERS = {
    "istft": DecoderShape("istft", 24, (16, 12), (2,), blocks=2, istft_hop=160),
    "hifigan": DecoderShape("hifigan", 24, (16, 8, 8, 4), (8, 5, 8)),
}


def built(kind="istft", seed=0):
    torch.manual_seed(seed)
    config = load_config(SCHEMA, None, SMALL)
    return Codec(TokenEncoder(network_shape(config).encoder), FSQ(24, (4, 5)), DECODERS[kind]).eval()


def encoded(codec, audio, **options):
    given = {"longest": 40, "overlap": 10, **options}
    parts = encode_windows(token_model(codec), lambda start, end: audio[start:end], len(audio), **given)
    return Tokens(np.concatenate(list(parts)), len(audio), 16000, 320, codec.fsq.vocabulary, identity(codec))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(2, 60), st.data())
def test_every_frame_is_kept_once_and_far_from_the_edges(frames, longest, data):
    overlap = data.draw(st.integers(0, longest - 1))
    windows = window_frames(frames, longest, overlap)
    assert [frame for _, _, first, last in windows for frame in range(first, last)] == list(range(frames))
    for start, end, first, last in windows:
        assert end - start == min(frames, longest)
        assert first == 0 or first - start >= overlap // 2
        assert last == frames or end - last >= overlap // 2


def test_a_short_recording_is_encoded_as_a_whole():
    codec, audio = built(), 0.1 * np.random.default_rng(0).standard_normal(9999).astype(np.float32)
    assert np.array_equal(encoded(codec, audio).tokens_TG, codec.encode(torch.from_numpy(audio)[None])[0].numpy())


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("frames", [7, 16])
def test_pieces_are_the_whole(kind, frames):
    codec, audio = built(kind), 0.1 * np.random.default_rng(0).standard_normal(33_333).astype(np.float32)
    tokens = encoded(codec, audio)
    assert tokens.tokens_TG.shape == (105, len(codec.fsq.groups))
    with torch.no_grad():
        whole = codec.decode(torch.from_numpy(tokens.tokens_TG)[None])[0, :33_333].numpy()
    pieces = np.concatenate(list(decode_pieces(token_model(codec), tokens, seconds=frames / 50)))
    assert len(pieces) == 33_333
    assert np.abs(pieces - whole).max() < 1e-5


def test_a_file_gives_its_tokens_back(tmp_path):
    codec = built()
    tokens = encoded(codec, np.zeros(5000, np.float32))
    write_tokens(tmp_path / "a.npz", tokens)
    found = read_tokens(tmp_path / "a.npz")
    assert np.array_equal(found.tokens_TG, tokens.tokens_TG)
    assert found.seconds == 5000 / 16000
    assert (found.vocabulary, found.model, found.hop) == (codec.fsq.vocabulary, identity(codec), 320)
    check_model(found, token_model(codec), tmp_path / "a.npz")
    with pytest.raises(UserError, match=rf"a.npz: tokens of the model {identity(codec)} .* these weights are"):
        check_model(found, token_model(built(seed=1)), tmp_path / "a.npz")
    other = 0 * found.tokens_TG
    other[5, 1] = codec.fsq.vocabulary[1]
    write_tokens(tmp_path / "b.npz", replace(found, tokens_TG=other))
    with pytest.raises(UserError, match=rf"b.npz: group 1: tokens from 0 to {other[5, 1]}, not 0 to {other[5, 1] - 1}"):
        read_tokens(tmp_path / "b.npz")
    for wrong in ({"samples": 0}, {"sample_rate": -1}, {"hop": 0}, {"vocabulary": (1,) * len(found.vocabulary)}):
        write_tokens(tmp_path / "b.npz", replace(found, **wrong))
        with pytest.raises(UserError, match=r"b\.npz: "):
            read_tokens(tmp_path / "b.npz")


def test_other_features_before_quantisation_make_other_tokens():
    codec = built()
    before = identity(codec)
    codec.whitening.fit(torch.randn(500, 24))
    assert identity(codec) != before


def test_what_is_no_token_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_tokens(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "c.npz", tokens=np.zeros((3, 2), np.int32))
    tokens = encoded(built(), np.zeros(5000, np.float32))
    write_tokens(tmp_path / "d.npz", tokens)
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:-30])
    write_tokens(tmp_path / "e.npz", Tokens(tokens.tokens_TG[:-1], *list(vars(tokens).values())[1:]))
    write_tokens(tmp_path / "f.npz", Tokens(tokens.tokens_TG * 1.0, *list(vars(tokens).values())[1:]))
    whole = (tmp_path / "f.npz").read_bytes()
    for place in range(0, len(whole), 7):  # a flipped byte is told, or was of no importance
        (tmp_path / "g.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            read_tokens(tmp_path / "g.npz")
    for name, said in [
        ("f", "not a file of tokens"),
        ("b", "damaged"),
        ("c", "without hop, model"),
        ("d", "damaged"),
        ("e", "where 16 frames of"),
    ]:
        with pytest.raises(UserError, match=said):
            read_tokens(tmp_path / f"{name}.npz")
