"""Parts of an HTML page in one file: no network, light and dark, readable without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sjepa.training.report import Section

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """A whole page with links to its sections. `about`: plain text below the title."""
    links = "".join(f'<a href="#s{number}">{escape(part.title)}</a>' for number, part in enumerate(sections))
    body = "".join(
        f'<section id="s{number}"><h2>{escape(part.title)}</h2>{part.body}</section>'
        for number, part in enumerate(sections)
    )
    return (
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
            f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header><nav>{links}</nav><main>{body}</main>"
            "</body></html>\n"
        )
        .encode("utf-8", "replace")
        .decode("utf-8")
    )  # names of files may hold bytes that are no text


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are aligned to the right."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(names))]

    def line(cells: Sequence[object], tag: str) -> str:
        marked = zip(cells, numeric, strict=True)
        return "".join(f"<{tag}{' class=number' * right}>{escape(str(cell))}</{tag}>" for cell, right in marked)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(names, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: object) -> bool:
    text = str(cell).replace(",", "").replace("%", "").replace("−", "-").partition("±")[0].strip()
    return text == "" or text.replace(".", "", 1).removeprefix("-").isdigit()


def bullets(lines: Iterable[str], *, bad: Iterable[str] = ()) -> str:
    """A list; `bad` lines come first, in red."""
    items = [f'<li class="bad">{escape(line)}</li>' for line in bad]
    return f"<ul>{''.join([*items, *(f'<li class=good>{escape(line)}</li>' for line in lines)])}</ul>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def plots(pictures: Iterable[tuple[str, str]]) -> str:
    """(SVG, caption) side by side."""
    shown = "".join(
        f"<figure>{svg}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
        for svg, caption in pictures
    )
    return f'<div class="plots">{shown}</div>'


def folded(summary: str, text: str) -> str:
    """Preformatted text behind a line to click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
