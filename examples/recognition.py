"""Recognition: fine-tunes an exported encoder to characters with CTC, by transformers.Trainer.

    python examples/recognition.py --encoder out/hf --audio my/recordings --table labels.tsv --out asr

The table (tab-separated) has the columns path (below --audio), text (or words), split (train or
test), and perhaps speaker. The epoch of the lowest loss on a tenth of the training speakers (clips,
if they are unknown), which is held out, is kept. Error rates on the test clips are printed before
and after. The model and its processor are left in --out, for
`pipeline("automatic-speech-recognition", model="asr", trust_remote_code=True)`, which takes
{"raw": waveform, "sampling_rate": 16000} (for file names it needs ffmpeg).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    Trainer,
    TrainingArguments,
    Wav2Vec2CTCTokenizer,
)

SAMPLE_RATE = 16000
BATCH = 8  # clips


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Fine-tunes and evaluates. Returns the error rates."""
    options = parse(arguments)
    rows = {split: read_table(options.table, split) for split in ("train", "test")}
    rows["train"], rows["dev"] = held_out(rows["train"], options.seed)
    tokenizer = make_tokenizer([row["text"] for row in rows["train"]], options.out)
    extractor = AutoFeatureExtractor.from_pretrained(options.encoder)
    torch.manual_seed(options.seed)
    config = AutoConfig.from_pretrained(
        options.encoder, trust_remote_code=True, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        ctc_loss_reduction="mean", ctc_zero_infinity=True, mask_time_prob=options.mask, mask_time_length=5,
        hidden_dropout=options.dropout, activation_dropout=options.dropout, final_dropout=options.dropout,
    )  # fmt: skip
    model = AutoModelForCTC.from_pretrained(options.encoder, config=config, trust_remote_code=True)
    if options.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("lm_head")
    updates = round(options.epochs * -(-len(rows["train"]) // BATCH))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out / "steps"), num_train_epochs=options.epochs, per_device_train_batch_size=BATCH,
            learning_rate=options.rate, warmup_steps=updates // 10, lr_scheduler_type="linear", weight_decay=0.01,
            eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
            metric_for_best_model="loss", greater_is_better=False, logging_steps=50, report_to=[], remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(), seed=options.seed, dataloader_num_workers=0, disable_tqdm=True,
        ),
        train_dataset=Clips(rows["train"], options.audio, tokenizer),
        eval_dataset=Clips(rows["dev"], options.audio, tokenizer),
        data_collator=Collator(extractor, tokenizer),
        compute_metrics=lambda output: error_rates(output, tokenizer),
    )  # fmt: skip
    test = Clips(rows["test"], options.audio, tokenizer)
    before = trainer.evaluate(test)
    trainer.train()
    after = trainer.evaluate(test)
    shutil.rmtree(options.out / "steps")
    trainer.save_model(str(options.out))
    extractor.save_pretrained(options.out)
    pairs = [
        (name, when, own) for name in ("cer", "wer", "loss") for when, own in (("before", before), ("after", after))
    ]
    found = {f"{name}_{when}": float(own[f"eval_{name}"]) for name, when, own in pairs}
    print("\n".join(f"{name}: {value:.3f}" for name, value in found.items()))
    (options.out / "error_rates.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="folder that exportw wrote, or a model of the Hub")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the recordings (16 kHz)")
    parser.add_argument("--table", type=Path, required=True, help="tab-separated: path, text or words, split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recogniser")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mask", type=float, default=0.1, help="fraction of frames masked in training (SpecAugment)")
    parser.add_argument("--frozen", action="store_true", help="train the output layer alone")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read_table(path: Path, split: str) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    names = [row.get("speaker") or row["path"] for row in rows]
    texts = [clean(row.get("text") or row.get("words") or "") for row in rows]
    return [
        {"path": row["path"], "text": text, "speaker": name} for row, text, name in zip(rows, texts, names, strict=True)
    ]


def held_out(rows: list[dict[str, str]], seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows without, and with, a tenth of the speakers."""
    speakers = sorted({row["speaker"] for row in rows})
    chosen = set(random.Random(seed).sample(speakers, max(1, len(speakers) // 10)))
    return [row for row in rows if row["speaker"] not in chosen], [row for row in rows if row["speaker"] in chosen]


def clean(text: str) -> str:
    """Lower case, letters and apostrophes of any script, single spaces."""
    return " ".join(re.sub(r"[^\w' ]", " ", text.lower()).split())


def make_tokenizer(texts: list[str], folder: Path) -> Wav2Vec2CTCTokenizer:
    """Characters of the training texts; | stands between words."""
    characters = sorted(set("".join(texts)) - {" "})
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", "|", *characters])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


class Clips(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Waveform and characters of each row."""

    def __init__(self, rows: list[dict[str, str]], folder: Path, tokenizer: Any) -> None:
        self.rows, self.folder, self.tokenizer = rows, folder, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        channels, rate = soundfile.read(self.folder / self.rows[index]["path"], dtype="float32", always_2d=True)
        if rate != SAMPLE_RATE:
            raise ValueError(f"{self.rows[index]['path']}: {rate} Hz; resample to {SAMPLE_RATE} first")
        return {"input_values": channels.mean(axis=1), "labels": self.tokenizer(self.rows[index]["text"]).input_ids}


class Collator:
    """Pads waveforms, with their attention mask, and labels (−100: not in the loss)."""

    def __init__(self, extractor: Any, tokenizer: Any) -> None:
        self.extractor, self.tokenizer = extractor, tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.extractor(
            [item["input_values"] for item in items], sampling_rate=SAMPLE_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
        )  # fmt: skip
        longest = max(len(item["labels"]) for item in items)
        labels = torch.full((len(items), longest), -100)
        for row, item in zip(labels, items, strict=True):
            row[: len(item["labels"])] = torch.tensor(item["labels"])
        return {**batch, "labels": labels}


def error_rates(output: Any, tokenizer: Any) -> dict[str, float]:
    """Character and word error rate of the best path."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    guesses = tokenizer.batch_decode(np.where(logits[..., :1] == -100, 0.0, logits).argmax(-1))
    labels = np.where(output.label_ids == -100, tokenizer.pad_token_id, output.label_ids)
    texts = tokenizer.batch_decode(labels, group_tokens=False)
    return {"cer": jiwer.cer(texts, guesses), "wer": jiwer.wer(texts, guesses)}


if __name__ == "__main__":
    main()
