"""The command `evaltok`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from sjepa.config.load import Schema, dump_config, parse_config
from sjepa.config.values import Names
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_csv, write_text
from sjepa.dataset.audio_write import write_audio
from sjepa.dataset.clips import Clips
from sjepa.entrypoints.probes import probe_rows
from sjepa.evaluation.scores import write_rows
from sjepa.reporting.console import Console
from sjepa.reporting.plots import save_figure
from sjepa.reporting.run_dir import new_run
from sjepa.reporting.tables import probe_table
from sjepa.s_jepa.labelled import labelled_sets
from sjepa.s_jepa.schema import SCHEMA as FEATURES
from sjepa.s_jepa.tools import Evaluation, Probe
from sjepa.s_jepa.units.pictures import probes_picture
from sjepa.tokenizer.codec.comparison import TRAINED, Comparison, Pair, Systems
from sjepa.tokenizer.codec.others import load_other
from sjepa.tokenizer.codec.pictures import draw_quality, draw_reconstruction, draw_usage
from sjepa.tokenizer.codec.quality import MEASURES, has_pesq
from sjepa.tokenizer.codec.usage import entropy_line, usage_table
from sjepa.tokenizer.codec.weights import CodecWeights, load_codec
from sjepa.tokenizer.settings import Model, TokConfig
from sjepa.training.feeding import evaluation_loader, load_set


class CodecEvaluation(TokConfig):
    """The configuration of `evaltok`."""

    weights: str | None = Field(None, description="Weights of stage 2 to evaluate (best.pt).")
    codecs: Names = Field([], description="Folders of transformers' EncodecModel or MimiModel, to compare with.")
    kept_clips: int = Field(3, ge=0, description="Clips that are written as audio, with a picture.")
    evaluation: Evaluation = Evaluation()
    probe: Probe = Probe()


SCHEMA = Schema(CodecEvaluation)


def evaluate_codec(config: CodecEvaluation) -> int:
    """Writes runs/<run_name>/eval[N]/: results.csv, clips.csv, codes.csv, pictures, audio, and
    probes.csv where `probe.tasks` asks for it. Returns the exit code."""
    if config.weights is None:
        raise UserError("weights: name the weights of stage 2 to evaluate (best.pt of a run of train_decoder)")
    console = Console()
    engine = Engine(device=config.device, precision="fp32", launch=False)
    if engine.processes.total > 1:
        raise UserError("one process is enough here: start it without torchrun or srun, or with one task")
    if config.dataset.test_path is None:
        raise UserError("dataset.test_path: name the recordings to evaluate on")
    weights = load_codec(Path(config.weights))
    codec = engine.to_device(weights.codec.eval())
    geometry, fsq = codec.encoder.geometry, codec.fsq
    frames_per_second = geometry.sample_rate / geometry.hop_samples
    rate = fsq.bits_per_frame * frames_per_second
    others = [load_other(Path(folder), rate, engine.device) for folder in config.codecs]
    own = _settled(config, weights)
    clips = load_set(own, "test_path", most=config.dataset.max_test_samples, progress=console.progress)
    probes = _probes(config, engine, console) if config.probe.tasks else None
    run_dir = new_run(Path(config.runs_root), config.run_name, "eval")
    console.log_to(run_dir.logs, "eval")
    write_text(run_dir.config, dump_config(config))
    console.plain(f"test        {clips.describe()}")
    console.left_out(clips.remarks, clips.dropped)
    console.note(f"{config.weights}: {fsq.describe(frames_per_second)}")
    if not has_pesq():
        console.note("PESQ is left out: the package pesq is not installed")
    found = _compared(own, Systems(codec, others, config.seed), engine, clips.clips, run_dir.root, console)
    _write(found, run_dir.root, frames_per_second, console)
    if probes is not None:
        rows = []
        for row in probes:
            rows.append(row)
            write_rows(run_dir.root / "probes.csv", rows)
        console.plain(probe_table(rows))
        save_figure(probes_picture(rows), run_dir.root / "probes.jpg")
    console.note(f"written to {run_dir.root}")
    return 0


def _settled(config: CodecEvaluation, weights: CodecWeights) -> CodecEvaluation:
    """With size and rate of the weights."""
    rate = weights.codec.encoder.geometry.sample_rate
    dataset = config.dataset.model_copy(update={"sample_rate": rate})
    return config.model_copy(update={"dataset": dataset, "model": Model.model_validate(weights.config["model"])})


def _compared(
    config: Any, systems: Systems, engine: Engine, clips: Clips, folder: Path, console: Console
) -> Comparison:
    loader = evaluation_loader(config, clips, engine)
    rate, left = systems.codec.encoder.geometry.sample_rate, config.kept_clips

    def keep(pair: Pair) -> None:
        nonlocal left
        if not left:
            return
        left -= 1
        stem = folder / "samples" / f"{config.kept_clips - left}_{Path(pair.name).stem}"
        stem.parent.mkdir(exist_ok=True)
        for suffix, audio_S in (("original", pair.original), ("tokens", pair.made[TRAINED])):
            write_audio(Path(f"{stem}_{suffix}.wav"), audio_S, rate)
        draw_reconstruction(pair.original, pair.made[TRAINED], rate, Path(f"{stem}.jpg"))

    batches = console.progress(loader.epoch(0), total=loader.num_rounds, label="test set")
    found = systems.compare(
        batches, warn=lambda failure: console.warn(f"skipped {failure.name}: {failure.reason}"), keep=keep
    )
    if not found.names:
        raise UserError("dataset.test_path: no clip could be read")
    return found


def _write(found: Comparison, folder: Path, frames_per_second: float, console: Console) -> None:
    groups = found.usage.groups()
    names = [*(measure.name for measure in MEASURES), "waveform"]
    results = []
    for system in found.values:
        for name in names:
            mean, deviation, count = found.mean(system, name)
            if count:
                results.append((system, f"{found.bits[system]:g}", name, f"{mean:.6g}", f"{deviation:.6g}", count))
    header = ("system", "bits_per_second", "metric", "mean", "deviation", "pieces")
    write_csv(folder / "results.csv", header, results)
    write_csv(
        folder / "clips.csv",
        ("piece", "clip", "system", *names),
        [
            (row, clip, system, *(f"{own[name][row]:.6g}" for name in names))
            for row, clip in enumerate(found.names)
            for system, own in found.values.items()
        ],
    )
    write_csv(
        folder / "codes.csv",
        ("group", "vocabulary", "used", "perplexity", "entropy_bits"),
        [
            (number, group.vocabulary, group.used, f"{group.perplexity:.6g}", f"{group.entropy:.6g}")
            for number, group in enumerate(groups)
        ],
    )
    draw_quality(found, folder / "quality.jpg")
    draw_usage(groups, folder / "codes.jpg")
    console.plain(found.table())
    console.plain(usage_table(groups))
    console.note(entropy_line(groups, frames_per_second))
    console.note(
        f"encoded {found.audio / found.encoding:.0f}, decoded {found.audio / found.decoding:.0f} times faster than real time"
    )


def _probes(config: CodecEvaluation, engine: Engine, console: Console) -> Any:
    """An iterator over probes of the features, as `evalsjepa` runs them."""
    given = config.dataset.model_dump(exclude_unset=True)
    dataset = {name: value for name, value in given.items() if name in ("test_path", "max_test_samples", "num_workers")}
    values = {
        "init_weights": config.weights,
        "device": config.device,
        "seed": config.seed,
        "dataset": dataset,
        "evaluation": config.evaluation.model_dump(exclude_unset=True),
        "probe": config.probe.model_dump(exclude_unset=True),
        "train": {"batch_size": config.train.batch_size},
    }
    plain = parse_config(FEATURES, values)
    clips = load_set(plain, "test_path", most=plain.dataset.max_test_samples, progress=console.progress).clips
    return probe_rows(plain, engine, console, labelled_sets(plain, engine, console, clips), None)
