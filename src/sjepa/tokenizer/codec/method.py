"""Stage 2 of the tokenizer as a system for the train command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchinfo import summary as torchinfo_summary

from sjepa.core.errors import UserError
from sjepa.core.progress import Messages
from sjepa.core.random import key
from sjepa.dataset.audio import DecodeError, Waveform
from sjepa.tokenizer.codec.fsq import FSQ
from sjepa.tokenizer.codec.metrics import FIGURES, RECONSTRUCTION
from sjepa.tokenizer.codec.model import operations, reach
from sjepa.tokenizer.codec.network import Codec
from sjepa.tokenizer.codec.samples import Samples, read_sample
from sjepa.tokenizer.codec.source import find_encoder, load_encoder
from sjepa.tokenizer.codec.step import Losses, LossWeights
from sjepa.tokenizer.codec.task import CodecParts, CodecStage, CodecTask, measure
from sjepa.tokenizer.codec.weights import load_codec
from sjepa.tokenizer.codec.whitening import fit_whitening
from sjepa.tokenizer.method import check_launch, network_shape, optimizer_builder, rate_curve, total_updates
from sjepa.tokenizer.modules.decoder import DecoderShape
from sjepa.tokenizer.modules.discriminators import Discriminators, DiscriminatorShape
from sjepa.tokenizer.modules.encoder import TokenEncoder
from sjepa.tokenizer.network import TokenJEPA
from sjepa.tokenizer.schema import SCHEMA
from sjepa.tokenizer.settings import UNTRAINED, TokConfig
from sjepa.tokenizer.shards import DECODER_SHARDS, ShardFolder, shard_folder
from sjepa.tokenizer.sizes import hyperparameters
from sjepa.training.feeding import Data, evaluation_loader
from sjepa.training.figures import Figure
from sjepa.training.frame_sample import training_frames
from sjepa.training.report import Report, Section
from sjepa.training.schedule import RunProgress, Schedule
from sjepa.training.system import Prepared

ALONE, TOGETHER = "reconstruction", "with discriminators"
_STFT_WINDOWS = (2048, 1024, 512)  # samples, of the discriminators of complex spectra
_STATES, _KEPT = 4, 60  # float32 copies of the weights; values that the decoder keeps per sample, about


class Start(NamedTuple):
    """The networks, and the clip to be reconstructed now and then."""

    codec: Codec
    judges: Discriminators
    sample: Waveform


class TokenizerDecoderSystem:
    """Reconstruction of audio from the quantised features of the frozen encoder."""

    name, schema, figures = "tokenizer decoder", SCHEMA, FIGURES
    state = (
        *("encoder", "whitening", "model", "optimizer", "discriminators", "discriminators_optimizer"),
        *("epoch_sums", "recent_sums"),
    )
    step_log = "decoder_logs.txt"

    def owns(self, config: TokConfig) -> bool:
        return config.train.stage == "train_decoder"

    def plan(
        self, config: TokConfig, steps_per_epoch: int, *, progress: RunProgress | None = None
    ) -> Schedule[CodecStage]:
        total = total_updates(config, steps_per_epoch, progress)
        begin = min(config.decoder.disc_start_step if config.decoder.gan_weight else total, total)
        if progress is not None:
            begin = progress.entered.get(TOGETHER, max(begin, progress.step))
        stages = [
            CodecStage(
                name=name,
                phase=2 if name == TOGETHER else 1,
                start_step=start,
                end_step=end,
                phase_start_step=0,
                augment=False,
                rate=rate_curve(config, total),
                adversarial=name == TOGETHER,
            )
            for name, start, end in ((ALONE, 0, begin), (TOGETHER, begin, total))
            if start < end
        ]
        return Schedule(tuple(stages), steps_per_epoch)

    def check(self, config: TokConfig, data: Data, schedule: Schedule[CodecStage]) -> None:
        """Any data fits."""

    def start(self, run: Prepared, *, note: Callable[[str], None]) -> Start:
        config: TokConfig = run.config
        check_launch(run)
        encoder, path = _encoder(config)
        geometry = encoder.geometry
        if geometry.sample_rate != config.dataset.sample_rate:
            raise UserError(
                f"dataset.sample_rate: {config.dataset.sample_rate}, but the encoder of {path} hears audio at "
                f"{geometry.sample_rate} Hz"
            )
        if config.geometry.hop_samples != geometry.hop_samples:
            raise UserError(
                f"model.size: frames of {config.geometry.hop_samples} samples, but those of the encoder of {path} have "
                f"{geometry.hop_samples}; give the size and overrides of stage 1"
            )
        torch.manual_seed(key(config.seed, "decoder"))
        codec = build_codec(config, encoder)
        windows = _STFT_WINDOWS if config.decoder.stft_discriminator else ()
        channels = hyperparameters(config.model.size, config.model.overrides).discriminator_channels
        judges = Discriminators(DiscriminatorShape(windows=windows, channels=channels))
        note(f"encoder: {path}; {codec.fsq.describe(geometry.sample_rate / geometry.hop_samples)}")
        total = run.schedule.total_steps
        if config.decoder.gan_weight and config.decoder.disc_start_step >= total:
            note(f"decoder.disc_start_step: {config.decoder.disc_start_step} is not reached in {total} updates")
        return Start(codec, judges, _sample(config, run.data))

    def describe(self, start: Start) -> str:
        """Table of the decoder's modules, totals, reach and operations."""
        codec, judges = start.codec, start.judges
        table = str(torchinfo_summary(codec.decoder, depth=2, col_names=("num_params", "params_percent"), verbose=0))
        encoder, others = (sum(weight.numel() for weight in part.parameters()) for part in (codec.encoder, judges))
        state = "trained too" if codec.train_encoder else "frozen"
        geometry, frames = codec.encoder.geometry, reach(codec.decoder.shape)
        seconds = frames * geometry.hop_samples / geometry.sample_rate
        encoding, decoding = operations(codec)
        return (
            f"{table}\nencoder {encoder:,} parameters, {state}; discriminators {others:,}\n"
            f"decoded audio depends on {frames} frames before and after ({seconds:.2g} s); a second of audio: "
            f"{encoding / 1e9:.2f} GFLOP to encode, {decoding / 1e9:.2f} to decode"
        )

    def memory_bytes(self, run: Prepared, start: Start) -> int:
        weights = sum(weight.numel() for part in (start.codec, start.judges) for weight in part.parameters())
        values = max(clips * samples for clips, samples in run.loader.largest_batches())
        return 4 * (_STATES * weights + _KEPT * values)

    def task(self, run: Prepared, start: Start, folder: Path, report: Report) -> CodecTask:
        config: TokConfig = run.config
        parts = CodecParts(
            engine=run.engine,
            build_optimizer=optimizer_builder(config, run.engine),
            losses=_losses(config),
            max_norm=config.train.grad_clip_norm,
            folder=folder / "weights",
            config=config.model_dump(mode="json", by_alias=True),
            samples=Samples(
                start.sample, folder.parent / "samples", config.decoder.sample_every, run.engine, report.note
            ),
        )
        assert isinstance(run.stage, CodecStage)
        codec, judges = run.engine.to_device(start.codec), run.engine.to_device(start.judges)
        if run.fresh and config.decoder.whiten:
            frames = training_frames(config, run.data, run.engine)
            fit_whitening(codec.whitening, codec.encoder.eval(), frames, report)
        return CodecTask(parts, codec, judges, run.stage)

    def copies(self, config: TokConfig, folder: Path) -> ShardFolder | None:
        return shard_folder(config, folder / DECODER_SHARDS)

    def best(self, config: TokConfig) -> Figure:
        return FIGURES[0]

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """None."""
        return []

    def results(self, run: Prepared, weights: Path, messages: Messages) -> dict[str, float]:
        codec, engine = run.engine.to_device(load_codec(weights).codec), run.engine
        loader = evaluation_loader(run.config, run.data.test.clips, engine)
        batches = messages.progress(loader.epoch(0), total=loader.num_rounds, label="test set")
        losses = engine.to_device(_losses(run.config))
        found = measure(engine, codec, codec.decoder, None, batches, losses, warn=messages.warn)
        return {name: value for name, value in found.items() if name in RECONSTRUCTION}

    def sections(self, run: Prepared, weights: Path, messages: Messages) -> list[Section]:
        """None."""
        return []


def build_codec(config: TokConfig, encoder: TokenEncoder) -> Codec:
    """With a new decoder. Raises UserError if quantiser or decoder do not fit the encoder."""
    values, width = hyperparameters(config.model.size, config.model.overrides), encoder.shape.width
    shape = DecoderShape(
        values.decoder,
        width,
        values.decoder_channels or values.channels[::-1],
        values.decoder_strides or values.strides[::-1],
        blocks=values.decoder_blocks,
        istft_hop=values.istft_hop,
    )
    try:
        fsq = FSQ(width, config.decoder.levels, config.decoder.group)
        return Codec(encoder, fsq, shape, train_encoder=config.decoder.train_encoder)
    except ValueError as error:
        raise UserError(f"decoder and model: {error}") from None


def _encoder(config: TokConfig) -> tuple[TokenEncoder, str]:
    """The encoder to begin with, and where it is from. Raises UserError."""
    if config.decoder.encoder == UNTRAINED:
        torch.manual_seed(key(config.seed, "model"))
        return TokenJEPA(network_shape(config)).encoder, UNTRAINED
    path = find_encoder(config.decoder.encoder, Path(config.runs_root) / config.run_name)
    return load_encoder(path), str(path)


def _losses(config: TokConfig) -> Losses:
    own = config.decoder
    weights = LossWeights(own.waveform_weight, own.spectral_weight, own.mel_weight, own.gan_weight)
    return Losses(config.dataset.sample_rate, weights)


def _sample(config: TokConfig, data: Data) -> Waveform:
    """`decoder.sample_wav`, or the first test clip that can be read. Raises UserError."""
    rate, most = config.dataset.sample_rate, max(config.dataset.max_seconds, 4.0)
    if config.decoder.sample_wav:
        return read_sample(Path(config.decoder.sample_wav), rate, most)
    clips = data.test.clips
    for position in range(len(clips)):
        try:
            return clips.read(position, length=min(int(clips.length_N[position]), round(most * rate)))
        except DecodeError:
            continue
    raise UserError("dataset.test_path: no clip could be read")


TOKENIZER_DECODER = TokenizerDecoderSystem()
