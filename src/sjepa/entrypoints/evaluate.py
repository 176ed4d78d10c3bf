"""evalsjepa."""

from __future__ import annotations

from pathlib import Path

from sjepa.config.load import dump_config, parse_config
from sjepa.config.schema import Config
from sjepa.core.distributed import Engine
from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.evaluation.evaluate import evaluate, write_results
from sjepa.reporting.console import Console
from sjepa.reporting.run_dir import new_run
from sjepa.training.assembly import step_settings
from sjepa.training.data import load_clips
from sjepa.training.feeding import evaluation_loader
from sjepa.weights import load_weights


def evaluate_weights(config: Config) -> int:
    """Writes runs/<run_name>/eval[N]/results.csv. The model, its masking and its mixture come from the weights file."""
    if config.init_weights is None:
        raise UserError("init_weights: name the weights to evaluate (best.pt of a run)")
    console = Console()
    engine = Engine(device=config.device, precision=config.train.precision, launch=False)
    if engine.processes.total > 1:
        raise UserError("one process is enough here: start it without torchrun or srun, or with one task")
    weights = load_weights(config.init_weights)
    trained = parse_config(weights.config, where=config.init_weights)
    settings = config.dataset.model_copy(update={"max_seconds": trained.dataset.max_seconds})
    config = config.model_copy(update={"model": trained.model, "masking": trained.masking, "dataset": settings})
    clip_set = load_clips(
        settings.test_path,
        settings,
        name="dataset.test_path",
        most=settings.max_test_samples,
        seed=config.seed,
        cache_folder=Path(config.runs_root) / config.run_name / "cache",
        progress=console.progress,
    )
    run_dir = new_run(Path(config.runs_root), config.run_name, "eval")
    console.log_to(run_dir.logs, "eval")
    write_text(run_dir.config, dump_config(config))
    written = f"epoch {weights.progress['epoch']}, {weights.stage['name']}"
    console.note(f"{config.init_weights} ({written}): model, masking and GMM are the file's own")
    console.plain(f"test        {clip_set.describe()}")
    results = evaluate(
        engine,
        weights,
        evaluation_loader(config, clip_set.clips, engine),
        settings=step_settings(config),
        progress=console.progress,
        warn=console.warn,
    )
    write_results(run_dir.results, results)
    console.plain("\n".join(f"{name:<20} {value:.6g}" for name, value in results.items()))
    console.note(f"written to {run_dir.results}")
    return 0
