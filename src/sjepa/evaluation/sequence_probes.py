"""Recognition probes (CTC heads) and ABX. [Probing]

T frames, L layers, D features, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sjepa.core.errors import UserError
from sjepa.core.random import key
from sjepa.evaluation.abx import KINDS, Token, draw_triples, error_rates, token_frames, triphones
from sjepa.evaluation.examples import LabelledClips, Positions, ProbeSettings, splits
from sjepa.evaluation.features import ClipFeatures
from sjepa.evaluation.labels import SPEAKER, TEXT_COLUMNS, Labels, phones_of
from sjepa.evaluation.recognition import Head, Transcribed, beam_search, greedy, train_head
from sjepa.evaluation.scores import BySpeaker, Probed, score

PHONES, CHARACTERS = "phones", "characters"

_HEADS: tuple[Head, ...] = ("linear", "bilstm")


def recognition(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[Probed]:
    """Phone or character recognition with CTC heads."""
    said_N = transcripts(task, clips.labels)
    usable = clips.usable(said_N, features)
    symbols = sorted({symbol for i in usable for symbol in said_N[i]})
    number = {symbol: index + 1 for index, symbol in enumerate(symbols)}
    parts = splits(task, clips, usable, settings, has_training_set=True)

    def example(position: int) -> Transcribed:
        x_TLD = features.frames_of(position)[:, columns].to(settings.device)
        return Transcribed(x_TLD, tuple(number[symbol] for symbol in said_N[position]))

    for kind in _HEADS:
        found = []
        for index, part in enumerate(parts):
            seed = key(settings.seed, task, index)
            train = [example(i) for i in part.train.tolist()]
            try:
                posteriors = train_head(kind, train, num_symbols=len(symbols), seed=seed, steps=settings.steps)
            except ValueError as error:
                raise UserError(f"probe.tasks: {task}: {error}") from None
            said = [said_N[i] for i in part.test.tolist()]
            heard = []
            for i in part.test.tolist():
                log_TV = posteriors(example(i).features_TLD)
                best = greedy(log_TV) if settings.beam == 1 else beam_search(log_TV, width=settings.beam)
                heard.append([symbols[symbol - 1] for symbol in best])
            found.append(score(_errors(task, said, heard, part.test, clips), len(part.train), len(part.test)))
        yield Probed(f"{kind} CTC", found, float("nan"))


def abx(
    task: str, clips: LabelledClips, features: ClipFeatures, columns: list[int], settings: ProbeSettings
) -> Iterator[Probed]:
    """ABX has no training and hence no learned layer weighting: several columns give no result."""
    if len(columns) > 1:
        return
    readable = [i for i in tested(clips).tolist() if features.means[i] is not None]
    spoken = tokens_of(clips, np.array(readable, np.int64))
    frames = {token.clip: features.frames_of(token.clip)[:, columns[0]].numpy() for token in spoken}
    own = token_frames(spoken, frames, features.seconds)
    values: dict[str, tuple[float, BySpeaker | None]] = {}
    judged = 0
    for kind in KINDS:
        triples = draw_triples(spoken, kind, seed=settings.seed)
        errors = error_rates(triples, own)
        judged += len(triples.a_N)
        values[kind] = (errors.mean(), BySpeaker(errors.present, errors.mean))
    yield Probed("triphones", [score(values, 0, judged)], float("nan"))


def tested(clips: LabelledClips) -> Positions:
    """Indices of the test clips (ABX has no training)."""
    return np.flatnonzero(~clips.in_train)


def tokens_of(clips: LabelledClips, positions: Positions) -> list[Token]:
    spans, rows = clips.labels.spans, clips.labels.rows
    return [token for i in positions.tolist() for token in triphones(i, rows[i].get(SPEAKER, ""), spans[i])]


def _errors(
    task: str, said: list[list[str]], heard: list[list[str]], clip_N: Positions, clips: LabelledClips
) -> dict[str, tuple[float, BySpeaker | None]]:
    """Error rates over all clips, and by speaker."""
    import jiwer

    if task == PHONES:
        between, measures = (" ", {"PER": jiwer.process_words})
    else:
        between, measures = ("", {"CER": jiwer.process_characters, "WER": jiwer.process_words})
    found = {}
    for name, process in measures.items():
        counts = [process(between.join(one), between.join(other)) for one, other in zip(said, heard, strict=True)]
        wrong_N = [count.substitutions + count.deletions + count.insertions for count in counts]
        length_N = [count.hits + count.substitutions + count.deletions for count in counts]
        rate = sum(wrong_N) / max(1, sum(length_N))
        found[name] = (rate, clips.by_speaker(wrong_N, length_N, clip_N))
    return found


def transcripts(task: str, labels: Labels) -> list[list[str]]:
    """The target symbols of each clip."""
    if task == PHONES:
        return [phones_of(text) for text in labels.column("phones")]
    texts = [" ".join(labels.text(position).split()) for position in range(len(labels.rows))]
    if not any(texts):
        labels.column(TEXT_COLUMNS[0])  # raises the error
    return [list(text) for text in texts]
