"""Prose is easy to read: lines of at most 100 characters in docstrings, comments and pages."""

import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
WIDTH = 100


def prose(path):
    """(line number, line) of what people read: tables, code and pictures are left out."""
    lines = path.read_text().splitlines()
    if path.suffix == ".md":
        code = False
        for number, line in enumerate(lines, 1):
            code ^= line.lstrip().startswith("```")
            if not code and not line.lstrip().startswith(("|", "```", "![", "<")):
                yield number, line
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        is_docstring = token.type == tokenize.STRING and token.line.strip().startswith('"""')
        is_comment = token.type == tokenize.COMMENT and token.line.strip().startswith("#")
        if is_docstring or is_comment:
            for number in range(token.start[0], token.end[0] + 1):
                yield number, lines[number - 1]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_are_short(path):
    long = [(number, line) for number, line in prose(path) if len(line) > WIDTH and " " in line.strip()]
    assert not long, f"{path}:{long[0][0]} has {len(long[0][1])} characters"
