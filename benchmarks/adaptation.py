"""Benefit of domain adaptation: continues training an encoder of one corpus on the audio of
another.

`python -m benchmarks.adaptation --from FOLDER --to FOLDER [--seeds 3] [--epochs 3] [--out FOLDER]
[section.key=value …]` (folders as for `benchmarks.learning`). For every seed: phase 1 on the first
corpus with the recipe of `cpu/configs/train_twophase.yaml`, evaluated on the second without
adaptation; the same adapted with `cpu/configs/adapt.yaml`, without labels; and phase 1 from scratch
on the second for the same number of epochs. Frame accuracy on the first corpus is reported too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import (
    ALONE,
    ROOT,
    Corpus,
    all_layers,
    frame_accuracy,
    mean_and_deviation,
    run,
    scores,
    training_minutes,
)
from sjepa.s_jepa.pretrained import PretrainedEncoder
from sjepa.s_jepa.weights import load_weights

# the recipe's encoder size instead of HuBERT Base; frontend, projection and positions frozen
_ADAPT = (
    "model.size=mini",
    "model.frontend=logmel",
    "train.freeze=0",
    "gmm.ema_layer=-1",
    "train.max_batch_seconds=10",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=__doc__)
    parser.add_argument("--from", dest="first", type=Path, required=True)
    parser.add_argument("--to", dest="second", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    first, second = Corpus(options.first), Corpus(options.second)
    recipe, adapt = ROOT / "cpu/configs/train_twophase.yaml", ROOT / "cpu/configs/adapt.yaml"
    epochs = f"train.epochs={options.epochs}"
    table: dict[str, list[Sequence[float]]] = {}
    for seed in range(options.seeds):
        trained = run(options, "phase1", seed, *ALONE, data=options.first, config=recipe)
        start = trained / "weights/last.pt"
        runs = {
            "as it is": trained,
            "adapted": run(
                options, "adapted", seed, *_ADAPT, epochs, f"init_weights={start}", data=options.second, config=adapt
            ),
            "from scratch": run(options, "scratch", seed, *ALONE, epochs, data=options.second, config=recipe),
        }
        for name, folder in runs.items():
            encoder = PretrainedEncoder(load_weights(folder / "weights/last.pt").model.encoder)
            there, layers = scores(second, all_layers(second, encoder), seed), all_layers(first, encoder)
            here = frame_accuracy(first, layers[there.layer])
            table.setdefault(name, []).append((there.frame_phones, there.speaker, there.abx_across, here))
            print(
                f"{name}, seed {seed}: {there}, first corpus {here:.4f}, {training_minutes(folder):.1f} min", flush=True
            )
    print(f"{'encoder':<16}{'phones':>18}{'speaker':>18}{'ABX across':>18}{'phones, first':>18}")
    for name, rows in table.items():
        columns = list(zip(*rows, strict=True))
        cells = [mean_and_deviation(column) for column in columns]
        print(f"{name:<16}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
