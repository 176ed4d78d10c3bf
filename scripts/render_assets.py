"""Draws assets/: logo and banner as SVG, light and dark, and their PNG renders: `python -m
scripts.render_assets`. The renders need Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "assets"
BARS = (0.32, 0.62, 1.0, 0.74, 0.48, 0.86, 0.40)  # heights of a waveform; the middle ones are masked
MASKED = (2, 3, 4)


class Colours(NamedTuple):
    ink: str
    soft: str
    one: str
    two: str
    page: str


LIGHT = Colours("#1d2329", "#5b6670", "#2f6db3", "#c2475b", "#ffffff")
DARK = Colours("#e4e8ec", "#98a4af", "#7db1ea", "#f08a9b", "#0d1117")


def mark(colours: Colours, size: float, identity: str) -> str:
    """A waveform in a square of `size`: bars heard, masked bars in soft colours under their bell
    curves."""
    step = size / (len(BARS) + 1)
    width, middle = step * 0.52, size * 0.42
    parts = [
        f'<linearGradient id="{identity}" x1="0" x2="1"><stop offset="0" stop-color="{colours.one}"/>'
        f'<stop offset="1" stop-color="{colours.two}"/></linearGradient>'
    ]
    for index, height in enumerate(BARS):
        x, tall = step * (index + 1) - width / 2, size * 0.60 * height
        hidden = index in MASKED
        look = (
            f'fill="url(#{identity})" fill-opacity="0.22" stroke="url(#{identity})" stroke-width="{size * 0.014:.2f}" '
            f'stroke-dasharray="{size * 0.03:.2f} {size * 0.02:.2f}"'
            if hidden
            else f'fill="{colours.ink}"'
        )
        parts.append(
            f'<rect x="{x:.2f}" y="{middle - tall / 2:.2f}" width="{width:.2f}" height="{tall:.2f}" rx="{width / 2:.2f}" {look}/>'
        )
    for centre, colour in ((2.4, colours.one), (3.6, colours.two)):
        left, right, peak = (step * (centre + offset + 1) for offset in (-1.7, 1.7, 0.0))
        base, top = size * 0.97, size * 0.80
        bend = step * 0.85
        parts.append(
            f'<path d="M{left:.2f} {base:.2f} C{left + bend:.2f} {base:.2f} {peak - bend:.2f} {top:.2f} {peak:.2f} {top:.2f} '
            f'S{right - bend:.2f} {base:.2f} {right:.2f} {base:.2f}" fill="none" stroke="{colour}" '
            f'stroke-width="{size * 0.022:.2f}" stroke-linecap="round"/>'
        )
    return "".join(parts)


def logo(colours: Colours) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" width="256" height="256" role="img" aria-label="sjepa">{mark(colours, 256, "g")}</svg>\n'


def banner(colours: Colours) -> str:
    font = "font-family=\"'Inter','Segoe UI','Helvetica Neue',Arial,sans-serif\""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 300" width="1200" height="300" role="img" '
        'aria-label="sjepa: a speech encoder from your own recordings, without labels">'
        f'<g transform="translate(60 34)">{mark(colours, 224, "g")}</g>'
        f'<text x="340" y="150" {font} font-size="112" font-weight="700" fill="{colours.ink}">sjepa</text>'
        f'<text x="345" y="207" {font} font-size="29" fill="{colours.soft}">A speech encoder from your own recordings, without labels</text>'
        "</svg>\n"
    )


def render(svg: Path, width: int, height: int) -> None:
    """PNG beside the SVG, transparent, at twice the size."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("render_assets: the PNG renders need Chromium (apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"<style>body{{margin:0}}svg{{display:block}}</style>{svg.read_text()}")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}", "--force-device-scale-factor=2",
             "--default-background-color=00000000", "--hide-scrollbars", f"--screenshot={svg.with_suffix('.png')}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        for kind, draw, size in (("logo", logo, (256, 256)), ("banner", banner, (1200, 300))):
            path = FOLDER / f"{kind}_{name}.svg"
            path.write_text(draw(colours), encoding="utf-8")
            render(path, *size)
            print(path)


if __name__ == "__main__":
    main()
