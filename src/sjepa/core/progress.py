"""Protocols for messages and progress bars, independent of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Yields the items unchanged while showing a progress bar."""

    def __call__(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]: ...


class Messages(Protocol):
    """Messages for terminal and log file (`note`, `warn`) or log file only (`detail`); progress."""

    @property
    def progress(self) -> Progress: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def silent(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """A `Progress` without output."""
    return iter(items)
