"""Messages and progress of long work, for code that knows no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Passes items through and shows how far along they are."""

    def __call__(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]: ...


class Messages(Protocol):
    """Lines of text for the user, and for the log file alone (`detail`); and progress."""

    @property
    def progress(self) -> Progress: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def silent(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """Shows nothing."""
    return iter(items)
