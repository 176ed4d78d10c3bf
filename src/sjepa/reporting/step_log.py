"""A tab-separated log of the training metrics, one line whenever they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sjepa.core.errors import UserError
from sjepa.core.files import write_text
from sjepa.training.clock import Clock
from sjepa.training.figures import Figure
from sjepa.training.report import StepFigures

_RUN = ("learning_rate", "gradient_norm", "audio_rate")


class StepLog:
    """Appends to `path`. A new run starts the file anew; a resumed one drops the lines after its
    step."""

    def __init__(self, path: Path, figures: Sequence[Figure], *, resumed_at: int | None) -> None:
        """`resumed_at`: the step a resumed run goes on from, None for a new run. Raises UserError
        if the file cannot be written."""
        self._path = path
        self._names = [figure.name for figure in figures if figure.where == "both"]
        lines = ["\t".join(("step", "epoch", *self._names, *_RUN))]
        if resumed_at is not None and path.exists():
            old = path.read_text(encoding="utf-8").splitlines()[1:]
            lines += [line for line in old if line.split("\t")[0].isdigit() and int(line.split("\t")[0]) <= resumed_at]
        write_text(path, "\n".join(lines) + "\n")

    def append(self, clock: Clock, figures: StepFigures) -> None:
        values = [figures.train.get(name, float("nan")) for name in self._names]
        values += [getattr(figures, name) for name in _RUN]
        line = "\t".join((str(clock.step), str(clock.epoch), *(f"{value:.6g}" for value in values)))
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror or error})") from error
