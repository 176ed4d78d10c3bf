import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from sjepa.core.frames import SPEECH
from sjepa.dataset.augment import Augmentation, at_pitch, at_speed, in_room, mix_gain
from sjepa.dataset.clips import Clips
from sjepa.dataset.loader import Batching, Loader, Readers, WindowDataset, from_workers
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops
from tests.support.audio import encode, tone


@pytest.fixture(scope="module")
def clips(corpus):
    return Clips([scan(source) for source in resolve_sources(str(corpus / "train.zip"))], sample_rate=16000)


def augmented(clips, number=400, **settings):
    """(clean, heard) of the first clip under many draws."""
    values = {"p_noise": 0.25, "p_mix": 0.25, "snr_db": (-5.0, 20.0), "ratio_db": (-5.0, 5.0)} | settings
    augmentation, clean = Augmentation(16000, 720, **values), clips.read(0)
    return [(clean, augmentation(clean, 0, clips, np.random.default_rng(seed))) for seed in range(number)]


def decibels(signal, reference):
    return 10 * np.log10(np.mean(np.square(signal, dtype=np.float64)) / np.mean(np.square(reference, dtype=np.float64)))


def test_at_most_one_of_the_two_at_their_probabilities(clips):
    pairs = augmented(clips)
    changed = [heard - clean for clean, heard in pairs if heard is not clean]
    # 400 draws at 0.5: 200 on average, deviation 10; five deviations allowed
    assert abs(len(changed) - 200) < 50
    whole = sum(np.count_nonzero(difference) > 0.8 * len(difference) for difference in changed)
    # 400 draws at 0.25 give 100 with noise over the whole clip, deviation 8.7
    assert abs(whole - 100) < 44


def test_noise_has_the_ratio_that_was_asked_for(clips):
    for clean, heard in augmented(clips, 20, p_noise=1.0, p_mix=0.0, snr_db=(7.0, 7.0)):
        assert decibels(clean, heard - clean) == pytest.approx(7.0, abs=0.05)


def test_a_mixed_slice_is_at_most_half_and_has_its_ratio(clips):
    lengths = []
    for clean, heard in augmented(clips, 50, p_noise=0.0, p_mix=1.0, ratio_db=(3.0, 3.0)):
        touched = np.flatnonzero(heard != clean)
        piece = (heard - clean)[touched[0] : touched[-1] + 1]
        lengths.append(len(piece))
        assert len(piece) <= len(clean) // 2
        assert decibels(piece, clean) == pytest.approx(3.0, abs=0.2)
    assert max(lengths) > len(clean) / 3
    assert min(lengths) < len(clean) / 6


def test_another_pitch_moves_the_spectrum_and_keeps_time():
    """A tone of 400 Hz that is heard from 0.5 to 1 s alone: 4 semitones above it is at 504 Hz, at
    the same moments."""
    clean = np.zeros(24000, np.float32)
    clean[8000:16000] = 0.3 * np.sin(2 * np.pi * 400 / 16000 * np.arange(8000))
    heard = at_pitch(clean, 4.0, 16000)
    assert heard.dtype == np.float32
    assert len(heard) == len(clean)
    spectrum = np.abs(np.fft.rfft(heard[9600:14400]))
    assert np.argmax(spectrum) * 16000 / 4800 == pytest.approx(504, abs=5)
    edge = 512  # a window of the analysis
    assert decibels(heard[: 8000 - edge], heard[8000:16000]) < -30
    assert decibels(heard[16000 + edge :], heard[8000:16000]) < -30


def test_echoes_fall_as_asked_and_the_loudness_stays():
    """Of a click the power falls by 60 dB in the time asked for; a slope through 30 windows of
    noise is good to a tenth."""
    click = np.zeros(16000, np.float32)
    click[0] = 1.0
    heard = in_room(click, 8000, 0.0, np.random.default_rng(0))
    assert decibels(heard, click) == pytest.approx(0.0, abs=1e-3)
    levels = [decibels(heard[at : at + 200], click) for at in range(200, 6200, 200)]
    slope = np.polyfit(np.arange(200, 6200, 200) / 16000, levels, 1)[0]
    assert slope == pytest.approx(-60 / 0.5, rel=0.1)
    assert np.sum(heard[1:] ** 2) / heard[0] ** 2 == pytest.approx(
        1.0, rel=1e-2
    )  # echoes as strong as the direct sound


@pytest.mark.slow
def test_pitch_and_room_are_drawn_apart_from_noise(clips):
    """Probability 1 − 0.5·0.8·0.75 = 0.7: 140 of 200 draws on average, deviation 6.5; five
    deviations allowed."""
    settings = {"p_noise": 0.25, "p_mix": 0.25, "p_pitch": 0.2, "p_reverb": 0.25}
    assert abs(sum(heard is not clean for clean, heard in augmented(clips, 200, **settings)) - 140) < 33
    assert all(heard is not clean for clean, heard in augmented(clips, 20, never_clean=True, p_mix=0.0, p_pitch=0.05))
    assert all(len(heard) == len(clean) for clean, heard in augmented(clips, 20, **settings))


def test_another_speed_is_one_for_targets_and_encoder():
    """A tone of 400 Hz at 1.25 times the speed is one of 500 Hz; slower, it is cut to its length."""
    clean = (0.3 * np.sin(2 * np.pi * 400 / 16000 * np.arange(16000))).astype(np.float32)
    fast, slow = at_speed(clean, 1.25), at_speed(clean, 0.8)
    assert len(fast) == 12800
    assert len(slow) == 16000
    assert [np.argmax(np.abs(np.fft.rfft(one[:12800]))) * 16000 / 12800 for one in (fast, slow)] == [500, 320]
    always = Augmentation(16000, 720, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), p_speed=1.0, speed=(1.25, 1.25))
    rng = np.random.default_rng(0)
    heard = clean + 0.5
    both = always.paced(clean, heard, rng)
    np.testing.assert_array_equal(both[0], fast)
    np.testing.assert_array_equal(both[1], at_speed(heard, 1.25))
    same_clean, same_heard = always.paced(clean, clean, rng)
    assert same_heard is same_clean
    shortest = clean[: SPEECH.samples(2)]
    assert always.paced(shortest, shortest, rng)[0] is shortest  # would have one frame


def test_a_batch_at_another_speed_has_the_lengths_it_says(clips):
    settings = Augmentation(16000, 720, 0.4, 0.4, (-5.0, 20.0), (-5.0, 5.0), p_speed=0.5)
    dataset = WindowDataset(clips, crops(clips.length_N, 16000), seed=0, fewest_samples=720, augmentation=settings)
    plain, paced = (
        {name: samples for batch in batches for name, samples in zip(batch.names, batch.num_samples, strict=True)}
        for batches in (all_batches(clips), Loader(dataset, Batching(4)).epoch(0, augment=True))
    )
    assert set(plain) == set(paced)
    assert all(0.9 * plain[name] <= paced[name] <= plain[name] for name in plain)
    assert any(paced[name] < plain[name] for name in plain)


def test_silence_is_not_amplified():
    assert mix_gain(np.ones(9, np.float32), np.zeros(9, np.float32), ratio_db=0) == 0


def test_noise_recordings_are_used_when_given(clips, tmp_path):
    (tmp_path / "noise.wav").write_bytes(encode(np.sign(tone(0.2)) * 0.25, 16000, "wav"))
    noise = Clips([scan(source) for source in resolve_sources(str(tmp_path))], sample_rate=16000)
    for clean, heard in augmented(clips, 5, p_noise=1.0, p_mix=0.0, noise=noise):
        difference = np.abs(heard - clean)
        assert difference.std() < 0.05 * difference.mean()  # a square wave, repeated over the whole clip


def test_a_clip_alone_stays_as_it_is(clips):
    assert all(heard is clean for clean, heard in augmented(clips.subset(np.array([0])), 20, p_noise=0.5, p_mix=0.5))


def all_batches(clips, epoch=0, first=0, workers=0, augment=True, max_batch_samples=None, seed=0):
    augmentation = Augmentation(16000, 720, 0.4, 0.4, (-5.0, 20.0), (-5.0, 5.0))
    dataset = WindowDataset(
        clips, crops(clips.length_N, 16000), seed=seed, fewest_samples=720, augmentation=augmentation
    )
    loader = Loader(dataset, Batching(4, max_batch_samples), Readers(workers))
    return list(loader.epoch(epoch, first_batch=first, augment=augment))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.clean_BS, y.clean_BS) and torch.equal(x.heard_BS, y.heard_BS) and x.names == y.names
        for x, y in zip(a, b, strict=True)
    )


def test_any_number_of_workers_gives_the_same_batches(clips):
    assert same(all_batches(clips), all_batches(clips, workers=2))


def test_an_epoch_can_start_at_any_batch(clips):
    whole = all_batches(clips, epoch=2)
    assert same(whole[3:], all_batches(clips, epoch=2, first=3))
    assert all_batches(clips, epoch=2, first=len(whole)) == []


def test_epochs_differ_in_order_crops_and_augmentation(clips):
    assert not same(all_batches(clips, epoch=0), all_batches(clips, epoch=1))
    by_name = [{name: row for batch in all_batches(clips, epoch=epoch) for name, row in zip(batch.names, batch.clean_BS, strict=True)}
               for epoch in (0, 1)]  # fmt: skip
    changed = [
        name
        for name in by_name[0]
        if by_name[0][name].shape == by_name[1][name].shape and not torch.equal(by_name[0][name], by_name[1][name])
    ]
    assert len(changed) > 5  # clips longer than the second that is cropped


def test_what_the_encoder_hears_is_clean_without_augmentation(clips):
    assert all(batch.heard_BS is batch.clean_BS for batch in all_batches(clips, augment=False))
    assert any(not torch.equal(batch.heard_BS, batch.clean_BS) for batch in all_batches(clips))


def test_bucketed_batches_keep_their_limit(clips):
    batches = all_batches(clips, max_batch_samples=50_000)
    assert max(batch.clean_BS.numel() for batch in batches) <= 50_000
    assert sorted(name for batch in batches for name in batch.names) == sorted(clips.name(i) for i in range(len(clips)))


def test_a_file_that_breaks_after_the_scan_is_left_out_and_named(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.wav").write_bytes(encode(tone(0.5, seed=number), 16000, "wav"))
    broken = Clips([scan(source) for source in resolve_sources(str(tmp_path))], sample_rate=16000)
    (tmp_path / "2.wav").write_bytes(b"gone bad")
    (tmp_path / "4.wav").unlink()
    batches = all_batches(broken, augment=False)
    failures = {failure.name.split("/")[1]: failure.reason for batch in batches for failure in batch.failures}
    assert set(failures) == {"2.wav", "4.wav"}
    assert failures["4.wav"] == "no such file"
    assert sum(len(batch.names) for batch in batches) == 4


def test_a_partner_that_cannot_be_read_is_named_and_not_the_clip(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.wav").write_bytes(encode(tone(0.5, seed=number), 16000, "wav"))
    clips = Clips([scan(source) for source in resolve_sources(str(tmp_path))], sample_rate=16000)
    (tmp_path / "3.wav").write_bytes(b"gone bad")
    batches = [batch for epoch in range(8) for batch in all_batches(clips.subset(np.array([0, 1, 2, 3])), epoch=epoch)]
    partners = [failure for batch in batches for failure in batch.failures if not failure.is_own]
    assert partners
    assert {failure.name.split("/")[1] for failure in partners} == {"3.wav"}
    assert all(len(batch.names) == 3 for batch in batches)  # the clips themselves are used


def test_partners_in_a_compressed_archive_are_near(corpus):
    clips = Clips([scan(source) for source in resolve_sources(str(corpus / "train.zip"))], sample_rate=16000)
    assert len(clips.neighbours(3)) == len(clips)
    clips.locality_N[:] = np.arange(len(clips)) // 4
    assert clips.neighbours(5).tolist() == [4, 5, 6, 7]
    clips.locality_N[5] = 99
    assert len(clips.neighbours(5)) == len(clips)  # alone in its block: any


def test_one_worker_process_gives_tensors_it_shares(clips):
    batch = all_batches(clips, workers=1, augment=False)[0]
    assert batch.heard_BS.data_ptr() == batch.clean_BS.data_ptr()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="POSIX signals")
def test_workers_outlive_a_signal_to_the_group_but_not_their_parent(corpus):
    """A loader that still lives when the interpreter exits must not keep it: the exit sends SIGTERM
    and waits."""
    code = f"""
import os, signal
from sjepa.dataset import loader as module
from sjepa.dataset.clips import Clips
from sjepa.dataset.scan import scan
from sjepa.dataset.sources import resolve_sources
from sjepa.dataset.windows import crops
module.GRACE_SECONDS = 3
clips = Clips([scan(source) for source in resolve_sources({str(corpus / "train.zip")!r})], sample_rate=16000)
dataset = module.WindowDataset(clips, crops(clips.length_N, 16000), seed=0, fewest_samples=720)
loader = module.Loader(dataset, module.Batching(1), module.Readers(2))
batches = loader.epoch(0)
next(batches), next(batches)  # one of each worker: both are ready for signals
signal.signal(signal.SIGTERM, lambda *_: None)
os.killpg(0, signal.SIGTERM)
print(sum(len(batch.names) for batch in batches))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, start_new_session=True
    )
    assert done.stdout.strip() == "16", done.stderr


def test_a_connection_that_breaks_waits_until_its_worker_is_known_to_be_dead():
    def items():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise ConnectionResetError
        yield

    def tell(*_):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, tell)
    try:
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            next(from_workers(items()))
    finally:
        signal.signal(signal.SIGALRM, before)
