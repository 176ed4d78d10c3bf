"""Stop signals as a flag: an exception raised inside a library's callback would be lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Within it SIGINT and SIGTERM only set a flag; once one has come, the function raises
    KeyboardInterrupt or SystemExit (143)."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    def stop() -> None:
        if seen and seen[0] == signal.SIGINT:
            raise KeyboardInterrupt
        if seen:
            raise SystemExit(128 + seen[0])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
