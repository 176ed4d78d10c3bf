"""Classification of utterances: speaker, emotion, language, or any other column of a table.

    python examples/classification.py --encoder runs/NAME/train/weights/best.pt \\
        --audio my/recordings --table labels.tsv --column emotion

The table (tab-separated) has the columns path (below --audio), split (train or test) and the column
to predict. A linear layer on the mean of the features is trained three times: on MFCC, on the
frozen encoder, and together with the encoder.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sjepa import load_encoder
from sjepa.s_jepa.pretrained import PretrainedEncoder

BATCH = 16


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains and tests. Returns the accuracies."""
    options = parse(arguments)
    train, test = (read(options, split) for split in ("train", "test"))
    names = sorted({label for _, label in train})
    labels = [torch.tensor([names.index(label) if label in names else -1 for _, label in own]) for own in (train, test)]
    waves = [[wave for wave, _ in own] for own in (train, test)]
    found = {"most frequent class": float((labels[1] == labels[0].mode().values).float().mean())}
    found["MFCC"] = linear([np.stack([mfcc(wave) for wave in own]) for own in waves], labels, options)
    encoder = load_encoder(options.encoder)
    found["encoder, frozen"] = linear([pooled(encoder, own).numpy() for own in waves], labels, options)
    found["encoder, fine-tuned"] = finetuned(encoder, waves, labels, len(names), options)
    print("\n".join(f"{name}: {value:.1%}" for name, value in found.items()))
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="best.pt, a folder that exportw wrote, or hf://OWNER/NAME")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--table", type=Path, required=True, help="tab-separated: path, split, and --column")
    parser.add_argument("--column", required=True)
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=3e-4, help="of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read(options: argparse.Namespace, split: str) -> list[tuple[Tensor, str]]:
    """(waveform at 16 kHz, label) of every row of a split."""
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split and row[options.column]]
    found = []
    for row in rows:
        waveform, rate = soundfile.read(options.audio / row["path"], dtype="float32", always_2d=True)
        mono = librosa.resample(waveform.mean(1), orig_sr=rate, target_sr=16000)
        found.append((torch.from_numpy(mono), row[options.column]))
    return found


def mfcc(wave: Tensor) -> np.ndarray:
    """Mean and deviation over time of 13 MFCC."""
    values = librosa.feature.mfcc(y=wave.numpy(), sr=16000, n_mfcc=13)
    return np.concatenate([values.mean(1), values.std(1)])


def batches(waves: list[Tensor], order: list[int]) -> list[list[int]]:
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def mean_features(encoder: PretrainedEncoder, waves: list[Tensor]) -> Tensor:
    """Mean over the real frames of each clip, [B, D]."""
    lengths = torch.tensor([len(wave) for wave in waves])
    features = encoder(pad_sequence(waves, batch_first=True), lengths)
    frames = encoder.feature_lengths(lengths)
    real = torch.arange(features.shape[1]) < frames[:, None]
    return (features * real[..., None]).sum(1) / frames[:, None]


@torch.no_grad()
def pooled(encoder: PretrainedEncoder, waves: list[Tensor]) -> Tensor:
    parts = batches(waves, list(range(len(waves))))
    return torch.cat([mean_features(encoder, [waves[index] for index in part]) for part in parts])


def linear(features: list[np.ndarray], labels: list[Tensor], options: argparse.Namespace) -> float:
    """Test accuracy of multinomial logistic regression on standardised features."""
    mean, deviation = features[0].mean(0), features[0].std(0) + 1e-6
    x, y = (torch.from_numpy((own - mean) / deviation).float() for own in features)
    torch.manual_seed(options.seed)
    layer = nn.Linear(x.shape[1], int(labels[0].max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(x), labels[0]) + 0.5 / len(x) * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float((layer(y).argmax(1) == labels[1]).float().mean())


def finetuned(
    encoder: PretrainedEncoder,
    waves: list[list[Tensor]],
    labels: list[Tensor],
    classes: int,
    options: argparse.Namespace,
) -> float:
    """Test accuracy after training encoder and linear layer together."""
    torch.manual_seed(options.seed)
    layer = nn.Linear(encoder.width, classes)
    optimizer = torch.optim.AdamW(
        [{"params": encoder.parameters(), "lr": options.rate}, {"params": layer.parameters(), "lr": 10 * options.rate}]
    )
    encoder.train()
    for epoch in range(options.epochs):
        order = torch.randperm(len(waves[0]), generator=torch.Generator().manual_seed(epoch)).tolist()
        for part in batches(waves[0], order):
            loss = nn.functional.cross_entropy(
                layer(mean_features(encoder, [waves[0][i] for i in part])), labels[0][part]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        return float((layer(pooled(encoder, waves[1])).argmax(1) == labels[1]).float().mean())


if __name__ == "__main__":
    main()
