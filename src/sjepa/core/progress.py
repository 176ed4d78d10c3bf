"""How long work tells that it goes on, without knowing what a terminal is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Passes items through and shows how far along they are."""

    def __call__(self, items: Iterable[T], *, total: int, label: str) -> Iterator[T]: ...


def silent(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """The progress that nobody sees."""
    return iter(items)
