import itertools
import math

import jiwer
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sjepa.evaluation.recognition import BiLSTM, Transcribed, beam_search, greedy, train_head


def clip(rng):
    """Each symbol has a direction of its own for five frames, silence between; a tenth of it is
    noise."""
    symbols = rng.integers(1, 5, size=6)
    frames = [np.zeros(5)]
    for symbol in symbols:
        frames += [np.eye(5)[symbol]] * 5 + [np.zeros(5)] * 2
    noisy = np.array(frames) + 0.1 * rng.normal(size=(len(frames), 5))
    return Transcribed(torch.tensor(noisy).float()[:, None], tuple(symbols.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "bilstm"])
def test_a_head_finds_symbols_that_features_show(kind):
    rng = np.random.default_rng(0)
    train, test = [clip(rng) for _ in range(60)], [clip(rng) for _ in range(20)]

    def heard():
        options = {"steps": 240, "lr": 0.05} if kind == "linear" else {"steps": 80, "lr": 0.01}
        posteriors = train_head(kind, train, num_symbols=4, seed=0, **options)
        return [greedy(posteriors(one.features_TLD)) for one in test]

    found = heard()
    said, shown = (
        [" ".join(map(str, symbols)) for symbols in clips] for clips in ((one.symbols for one in test), found)
    )
    assert jiwer.wer(said, shown) < 0.2  # a head without memory sees some symbols twice in noise
    assert found == heard()


def test_transcripts_longer_than_their_clip_are_left_out():
    fine = Transcribed(torch.randn(9, 1, 3), (1, 2))
    short = Transcribed(torch.randn(2, 1, 3), (1, 1))
    with pytest.raises(ValueError, match="no clip"):
        train_head("linear", [short], num_symbols=2, seed=0, steps=1)
    alone, beside = (
        train_head("linear", clips, num_symbols=2, seed=0, steps=1)(fine.features_TLD)
        for clips in ([fine], [fine, short])
    )
    assert torch.equal(alone, beside)


def test_the_bilstm_is_torchs_own_on_packed_sequences():
    torch.manual_seed(0)
    ours = BiLSTM(6)
    width = ours.forwards[0].hidden_size
    theirs = nn.LSTM(6, width, 2, batch_first=True, bidirectional=True)
    state = {}
    for layer in range(2):
        for own, ending in ((ours.forwards[layer], ""), (ours.backwards[layer], "_reverse")):
            state |= {name.replace("_l0", f"_l{layer}{ending}"): value for name, value in own.state_dict().items()}
    theirs.load_state_dict(state)
    lengths = torch.tensor([4, 9, 1])
    x = torch.randn(3, 9, 6)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert (found[row, :length] - expected[row, :length]).abs().max() < 1e-5


def probabilities(log_TV):
    """Of every sequence, its paths added up one by one."""
    found = {}
    for path in itertools.product(range(log_TV.shape[1]), repeat=len(log_TV)):
        symbols = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)
        found[symbols] = found.get(symbols, 0.0) + math.exp(sum(log_TV[t, s].item() for t, s in enumerate(path)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_likeliest_sequence_of_all(seed):
    log_TV = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).mul(1.5).log_softmax(1)
    every = probabilities(log_TV)
    assert beam_search(log_TV, width=1000) == max(every, key=every.get)
    assert every[beam_search(log_TV, width=4)] >= every[greedy(log_TV)] - 1e-9


def test_a_beam_adds_paths_up_where_greedy_looks_at_one():
    """Blank is likeliest at each of two frames (0.36), yet most paths hold the symbol (0.64)."""
    log_TV = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(log_TV) == ()
    assert beam_search(log_TV, width=4) == (1,)
