"""A folder of token files, with a listing of all."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from sjepa.core.errors import UserError
from sjepa.core.files import atomic_path
from sjepa.entrypoints.recordings import Recording
from sjepa.tokenizer.codec.tokens import Tokens, write_tokens

LISTING = "tokens.jsonl"
_TOKENS, _END = ', "tokens": [', "]}\n"  # of a line, after what it says of the recording
_LONGEST = 200  # bytes of a name


class TokenFolder:
    """`path` is made if it does not exist. Raises UserError if it cannot be, or if its listing is
    damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"--out: {path} is not a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: {path}: cannot be made ({error.strerror})") from error
        self._earlier = {str(about.get("file")): about for about, _ in self._lines()}
        self._made: set[str] = set()
        self._listing: TextIO | None = None

    def names(self, recordings: Sequence[Recording]) -> list[str]:
        """Names of the token files; longer ones where two recordings, also earlier ones of this
        folder, would share theirs."""
        found: dict[str, None] = {}
        for own in recordings:
            stem = own.path.stem if own.duration is None else f"{own.path.stem}_{own.start:.3f}"
            parents = [parent.name for parent in own.path.parents if parent.name]
            longer = ("_".join([*reversed(parents[:count]), stem]) for count in range(len(parents) + 1))
            numbered = (f"{_short(stem)}_{number}" for number in itertools.count(2))
            for name in itertools.chain(map(_short, longer), numbered):
                file = f"{name}.npz"
                if file not in found and self._is_free(file, own):
                    found[file] = None
                    break
        return list(found)

    def _is_free(self, file: str, recording: Recording) -> bool:
        earlier = self._earlier.get(file)
        if earlier is None:
            return not (self.path / file).exists()
        return recording.about.items() <= earlier.items()

    @contextlib.contextmanager
    def listing(self) -> Iterator[None]:
        """Within it token files are written; at the end, also after an error or an interruption,
        the listing has those written, and those of before that were not made anew."""
        failure: BaseException | None = None
        with atomic_path(self.path / LISTING) as temporary, temporary.open("w", encoding="utf-8") as self._listing:
            try:
                yield
            except BaseException as error:
                failure = error
            for about, line in self._lines():
                if about.get("file") not in self._made:
                    self._listing.write(line)
        if failure is not None:
            raise failure

    def write(self, name: str, recording: Recording, tokens: Tokens) -> None:
        """The token file and its line; frame by frame, since the tokens of an hour take a hundred
        megabytes as Python's numbers."""
        assert self._listing is not None
        write_tokens(self.path / name, tokens)
        self._made.add(name)
        about = {"file": name, **recording.about, "duration": round(tokens.seconds, 4), "model": tokens.model}
        self._listing.write(json.dumps(about)[:-1] + _TOKENS)
        for frame, token_G in enumerate(tokens.tokens_TG):
            self._listing.write(f"{', ' if frame else ''}{token_G.tolist()}")
        self._listing.write(_END)

    def _lines(self) -> Iterator[tuple[dict[str, Any], str]]:
        """What the listing says of every recording, and the whole line."""
        path = self.path / LISTING
        if not path.exists():
            return
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    about, _, tokens = line.partition(_TOKENS)
                    if not tokens.endswith(_END):
                        raise ValueError
                    yield json.loads(about + "}"), line
        except (ValueError, OSError):
            raise UserError(f"{path}: not a listing of tokens, or damaged; name another folder") from None


def _short(name: str) -> str:
    """At most 200 bytes, so that file systems take it."""
    return name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore") or "recording"
