"""Readings, entropies and components against plain computations."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from sjepa.core.distributed import Engine
from sjepa.core.frames import SPEECH
from sjepa.core.random import key
from sjepa.dataset.batch import Sample, collate
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.model import SJEPA, ModelShape
from sjepa.s_jepa.modules.encoder import EncoderShape
from sjepa.s_jepa.step import Forward, StepSettings, choose_frames
from sjepa.s_jepa.units.components import ComponentReport
from sjepa.s_jepa.units.readings import EntropyHistogram, entropy_bits, read_encoder, read_frames, real_frames

SETTINGS = StepSettings(0, 0.65, 10, 1.0, 0.0, 2, geometry=SPEECH)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = EncoderShape(16, 2, TransformerShape(32, 2, 64), position_groups=4)
    return SJEPA(ModelShape(encoder, TransformerShape(32, 2, 64), num_clusters=6, max_frames=100)).eval()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    waveforms = [(0.1 * rng.normal(size=size)).astype(np.float32) for size in (16000, 9000)]
    return collate([(Sample(wave, wave, 3 + i, i, ""), []) for i, wave in enumerate(waveforms)])


def test_real_frames_leave_padding_out(batch):
    longest = SPEECH.frames(16000)
    expected = [*range(longest), *range(longest, longest + SPEECH.frames(9000))]
    assert real_frames(batch, SPEECH).tolist() == expected


@torch.no_grad()
def test_the_encoder_is_read_without_masks_and_the_predictor_where_masked(model, batch):
    engine = Engine(device="cpu", precision="fp32", launch=False)
    readings = read_frames(Forward(engine, model, SETTINGS), batch)
    samples = torch.tensor(batch.num_samples)
    features = model.encoder(batch.clean_BS, samples).features_BTD.flatten(0, 1)[readings.frame_N]
    assert (readings.encoder_NK - model.head(features).log_softmax(1)).abs().max() < 1e-5
    assert torch.equal(readings.encoder_NK, read_encoder(engine, model, batch, SPEECH))
    mask_BT = choose_frames(batch, mask_key=key(0, "validation mask"), settings=SETTINGS).mask_BT
    real_BT = torch.arange(mask_BT.shape[1]) < SPEECH.frames(samples)[:, None]
    row = 0
    for clip in range(2):  # alone, without padding, so that nothing of the batch is on this side
        frames = SPEECH.frames(int(samples[clip]))
        own_mask, waveform = mask_BT[clip : clip + 1, :frames], batch.clean_BS[clip : clip + 1, : samples[clip]]
        for mask in (own_mask, real_BT[clip : clip + 1, :frames] & ~own_mask):
            encoded = model.encoder(waveform, mask_BT=mask)
            expected = model.head(model.predictor(encoded.features_BTD, mask, encoded.real_BT)).log_softmax(-1)
            difference = (readings.predictor_NK[row : row + frames] - expected[0])[mask[0]].abs().max()
            assert difference < 1e-4
        row += frames
    assert row == len(readings.frame_N)


def test_entropies_and_their_shares_are_those_of_plain_computations():
    posterior = torch.rand(500, 8, generator=torch.Generator().manual_seed(0)).pow(8)
    posterior /= posterior.sum(1, keepdim=True)
    bits = entropy_bits(posterior.log())
    assert np.abs(bits.numpy() - entropy(posterior.double().numpy(), base=2, axis=1)).max() < 1e-4
    histogram = EntropyHistogram(8)
    for part in bits.split(150):
        histogram.add(part)
    assert histogram.frames == histogram.count_E.sum() == 500
    assert histogram.mean_bits == pytest.approx(float(bits.mean()), rel=1e-6)
    assert histogram.shares_above == [float((bits > threshold).double().mean()) for threshold in (0.5, 1, 2)]
    counted, _ = np.histogram(bits.double().numpy(), bins=histogram.edges_bits)
    assert np.array_equal(counted, histogram.count_E)
    histogram.add(torch.tensor([0.0, math.log2(8), math.log2(8) + 1e-6, -1e-7]))  # the ends, and rounding beyond them
    assert histogram.count_E.sum() == 504


def test_purity_pnmi_and_what_lies_nearest_are_those_of_plain_computations(tmp_path):
    rng = np.random.default_rng(1)
    unit, phone = rng.integers(0, 5, 400), rng.integers(-1, 3, 400)
    phone = np.where((unit == 2) & (phone >= 0), 1, phone)
    near = torch.from_numpy(rng.normal(size=(400, 5))).float()
    target = near.softmax(1)
    report = ComponentReport(5, ["A", "B", "C"], nearest=20)
    for part in np.array_split(np.arange(400), 3):
        report.add(torch.from_numpy(unit[part]), target[part], near[part], phone[part])
    known = phone >= 0
    information = mutual_info_score(unit[known], phone[known])
    assert report.pnmi == pytest.approx(information / entropy(np.bincount(phone[known])), rel=1e-9)
    most = sum(np.bincount(phone[known & (unit == number)]).max() for number in range(5))
    assert report.purity == pytest.approx(most / known.sum())
    report.write(tmp_path / "components.csv")
    rows = list(csv.DictReader((tmp_path / "components.csv").open()))
    assert [int(row["frames"]) for row in rows] == sorted(np.bincount(unit), reverse=True)
    for row in rows:
        component = int(row["component"])
        order = np.argsort(-near[:, component].numpy()[known])[:20]
        counts = np.bincount(phone[known][order], minlength=3)
        assert row["nearest_phone"] == "ABC"[counts.argmax()]
        assert float(row["nearest_share"]) == pytest.approx(counts.max() / 20, abs=1e-4)
        assert float(row["mean_posterior"]) == pytest.approx(float(target[:, component].mean()), rel=1e-4)


def test_without_labels_a_report_counts_units_alone(tmp_path):
    report = ComponentReport(3, [])
    report.add(torch.tensor([0, 0, 2]), torch.eye(3), torch.eye(3), np.array([-1, -1, -1]))
    assert not report.has_phones
    report.write(tmp_path / "components.csv")
    lines = (tmp_path / "components.csv").read_text().splitlines()
    assert lines == ["component,frames,mean_posterior", "0,2,0.333333", "2,1,0.333333", "1,0,0.333333"]
