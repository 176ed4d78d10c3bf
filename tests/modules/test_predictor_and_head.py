import pytest
import torch

from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.modules.predictor import Predictor
from tests.support.encoders import TINY

SHAPE = TransformerShape(64, 4, 128)


@pytest.fixture(params=["learned", "convolution"])
def predictor(request):
    torch.manual_seed(0)
    return Predictor(SHAPE, max_frames=50, positions=request.param, kernel=8, groups=4).eval()


def test_what_the_encoder_says_at_masked_frames_is_replaced(predictor):
    features, real = torch.randn(1, 30, 64), torch.ones(1, 30, dtype=torch.bool)
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[0, 10:20] = True
    other = torch.where(mask[..., None], torch.randn(1, 30, 64), features)
    assert torch.equal(predictor(features, mask, real), predictor(other, mask, real))


def test_padding_never_changes_predictions(predictor):
    features, mask = torch.randn(1, 30, 64), torch.rand(1, 30) < 0.5
    alone = predictor(features, mask, torch.ones(1, 30, dtype=torch.bool))
    longer = torch.cat([features, torch.randn(1, 15, 64)], dim=1)
    real = torch.arange(45)[None] < 30
    together = predictor(longer, torch.cat([mask, torch.zeros(1, 15, dtype=torch.bool)], 1), real)
    assert torch.allclose(together[:, :30], alone, atol=1e-5)


def test_masked_frames_differ_by_their_position(predictor):
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[0, 8:12] = True
    predicted = predictor(torch.randn(1, 20, 64), mask, torch.ones(1, 20, dtype=torch.bool))
    assert (predicted[0, 9:12] - predicted[0, 8:11]).abs().amax(dim=1).min() > 1e-3


def test_more_frames_than_positions_are_refused():
    predictor = Predictor(SHAPE, max_frames=50)
    with pytest.raises(ValueError, match="60 frames, but the predictor has positions for 50"):
        predictor(torch.zeros(1, 60, 64), torch.zeros(1, 60, dtype=torch.bool), torch.ones(1, 60, dtype=torch.bool))


def test_convolutional_positions_have_no_end_and_do_not_know_the_frame_number():
    """All masked, so that nothing but positions tells frames apart: 40 frames from any edge there
    is nothing to tell."""
    torch.manual_seed(0)
    predictor = Predictor(SHAPE, max_frames=50, positions="convolution", kernel=8, groups=4).eval()
    everything = torch.ones(1, 200, dtype=torch.bool)
    predicted = predictor(torch.zeros(1, 200, 64), everything, everything)
    assert torch.allclose(predicted[0, 40], predicted[0, 150], atol=1e-5)
    assert not torch.allclose(predicted[0, 0], predicted[0, 150], atol=1e-3)


def test_logits_at_chosen_frames_are_those_of_a_dense_pass():
    torch.manual_seed(0)
    model = SJEPA(ModelShape(TINY, SHAPE, 9, 50)).eval()
    waveform, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 6000])
    mask = torch.zeros(2, 27, dtype=torch.bool)
    mask[:, 3:13] = True
    masked, visible = mask.flatten().nonzero().flatten(), torch.tensor([0, 20, 27])
    with torch.no_grad():
        logits = model(waveform, lengths, mask, masked, visible)
        encoded = model.encoder(waveform, lengths, mask_BT=mask)
        dense = model.head(model.predictor(encoded.features_BTD, mask, encoded.real_BT)).flatten(0, 1)
        dense_visible = model.head(encoded.features_BTD).flatten(0, 1)
    assert torch.allclose(logits.masked_NK, dense[masked], atol=1e-5)
    assert torch.allclose(logits.visible_NK, dense_visible[visible], atol=1e-5)


def test_a_shape_survives_as_plain_values():
    shape = ModelShape(TINY, SHAPE, 9, 50)
    assert ModelShape.from_dict(shape.to_dict()) == shape
