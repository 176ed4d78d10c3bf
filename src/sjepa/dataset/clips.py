"""A collection of clips from one or several scanned sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa.core.files import printable
from sjepa.core.random import key
from sjepa.dataset.audio import AudioInfo, DecodeError, Waveform, decode_window, resampled_length
from sjepa.dataset.containers import CONTAINERS, Containers, Place
from sjepa.dataset.hdf5 import read_stored
from sjepa.dataset.listing import Source
from sjepa.dataset.table import ClipTable


class Clips:
    """Clips of one or several tables, read at `sample_rate`.

    `length_N`: samples at `sample_rate`. `id_N`: the clip's index in the full listing; random draws
    are keyed by it, so that they do not depend on the subset. `locality_N`: clips with equal
    numbers are in the same block of a compressed archive, −1 if not applicable. `source_N`: index
    of the source.
    """

    def __init__(
        self,
        tables: Sequence[ClipTable],
        *,
        sample_rate: int,
        sources_apart: bool = False,
        _keep: NDArray[np.int64] | None = None,
    ) -> None:
        """`sources_apart`: reading clips of different sources together is expensive."""
        self.sample_rate, self.sources_apart = sample_rate, sources_apart
        self._tables = list(tables)
        self._containers = Containers()
        counts = [len(table) for table in tables]
        self._first_id = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._all = np.arange(len(_keep) if _keep is not None else int(self._first_id[-1]))
        self.id_N = np.arange(self._first_id[-1]) if _keep is None else _keep
        lengths = [resampled_length(table.samples, table.rate, sample_rate) for table in tables]  # type: ignore[arg-type]
        self.length_N = _joined(lengths)[self.id_N]
        self.locality_N = _joined([CONTAINERS[table.source.kind].blocks(table.offset) for table in tables])[self.id_N]
        self.source_N = np.searchsorted(self._first_id, self.id_N, side="right") - 1
        self.locality_N[self.locality_N >= 0] += self._first_id[self.source_N][self.locality_N >= 0]

    def __len__(self) -> int:
        return len(self.id_N)

    @property
    def hours(self) -> float:
        return float(self.length_N.sum()) / self.sample_rate / 3600

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(name, reason) of every entry dropped by the scan."""
        return [
            (f"{table.source.path.name}/{printable(name)}", reason)
            for table in self._tables
            for name, reason in table.dropped
        ]

    @property
    def remarks(self) -> list[str]:
        """Warnings about the sources, for the user."""
        return [text for table in self._tables for text in table.remarks]

    @property
    def sources(self) -> list[Source]:
        return [table.source for table in self._tables]

    @property
    def listed(self) -> int:
        """Number of clips in the full listing; ids are below it."""
        return int(self._first_id[-1])

    def subset(self, positions: NDArray[Any]) -> Clips:
        """The clips at these positions (or under this mask), in the order given."""
        return Clips(
            self._tables,
            sample_rate=self.sample_rate,
            sources_apart=self.sources_apart,
            _keep=self.id_N[positions],
        )

    def neighbours(self, position: int) -> NDArray[np.int64]:
        """Positions (including this one) that are cheap to read together with it: those in its
        block of a compressed archive or, with `sources_apart`, in its source; all, if there are no
        others."""
        locality = self.locality_N[position]
        if locality >= 0:
            near = np.flatnonzero(self.locality_N == locality)
        elif self.sources_apart:  # positions are in the order of the sources
            source = self.source_N[position]
            near = np.arange(*np.searchsorted(self.source_N, (source, source + 1)))
        else:
            return self._all
        return near if len(near) > 1 else self._all

    def name(self, position: int) -> str:
        """A printable name: source and path inside it."""
        table, row = self._row(position)
        return f"{table.source.path.name}/{printable(table.names[row])}"

    def path(self, position: int) -> str:
        """Printable path inside the clip's source; for HDF5, inside the source the file was built
        from."""
        table, row = self._row(position)
        name = table.names[row]
        return printable(name if table.stored is None else name.partition("/")[2])

    def first_second(self, position: int) -> float:
        """Where a segment begins in its recording; 0 for a whole one."""
        table, row = self._row(position)
        return 0.0 if table.stored is not None else float(table.first[row] / table.rate[row])

    def labels(self, position: int) -> dict[str, Any]:
        """The manifest fields of this clip."""
        table, row = self._row(position)
        return {name: column[row] for name, column in table.labels.items()}

    def speaker(self, position: int) -> int:
        """Speaker key, from the manifest field `speaker`; 0 if unknown."""
        table, row = self._row(position)
        speakers = table.labels.get("speaker")
        return 0 if speakers is None or speakers[row] in (None, "") else key("speaker", str(speakers[row]))

    def copies(self, position: int) -> int:
        """Number of stored augmented copies of a clip (HDF5)."""
        table, row = self._row(position)
        return 0 if table.stored is None else int((table.stored.copy_offset_CN[:, row] >= 0).sum())

    def read(self, position: int, *, start: int = 0, length: int | None = None, copy: int | None = None) -> Waveform:
        """`length` samples from `start` on (None: to the end), mono float32 at `sample_rate`, of
        the clip or of a stored copy. Raises DecodeError."""
        table, row = self._row(position)
        length = int(self.length_N[position]) - start if length is None else length
        if table.stored is not None:
            return read_stored(self._containers, table, row, start, length, copy=copy)
        info = AudioInfo(int(table.samples[row]), int(table.rate[row]), int(table.channels[row]))
        place = Place(table.names[row], int(table.offset[row]), int(table.size[row]), table.gzip_index)
        with self._containers.open(table.source, place) as file:
            samples = decode_window(
                file, info, start=start, length=length, rate=self.sample_rate, first=int(table.first[row])
            )
        if not len(samples):
            raise DecodeError("ends before the samples asked for")
        return samples

    def _row(self, position: int) -> tuple[ClipTable, int]:
        number = int(self.source_N[position])
        return self._tables[number], int(self.id_N[position] - self._first_id[number])


def _joined(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(columns) if columns else np.zeros(0, np.int64)
