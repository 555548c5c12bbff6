"""Makes SVG files of a page's pictures, for papers and slides. Colours are written out: converters know no CSS variables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from markupsafe import Markup

from tdformer.pages.self_contained import resource

OPENING = re.compile(r"<svg ")
BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
PIXELS = re.compile(r'src="(data:image/png;base64,[^"]*)"')
SIDE, GAP, TITLE = 96, 8, 16
"""Sizes in a grid: a picture, the space between two, and the line of a title."""


def standalone(picture: Markup) -> str:
    """Return a picture of a page as the text of an SVG file."""
    box = BOX.search(picture)
    size = f'width="{box[1]}" height="{box[2]}" ' if box and " width=" not in picture[: picture.index(">")] else ""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size}'
    return OPENING.sub(opening, str(picture), count=1).replace(">", f"><style>{_style()}</style>", 1)


def grid(rows: Sequence[Sequence[tuple[str, Markup]]]) -> str:
    """Return rows of titled maps and images as the text of one SVG file."""
    cell_width, cell_height = SIDE + GAP, SIDE + TITLE + GAP
    parts = [
        f'<text x="{column * cell_width}" y="{row * cell_height + TITLE - 4}">{escape(title)}</text>'
        + _placed(picture, column * cell_width, row * cell_height + TITLE)
        for row, of_row in enumerate(rows)
        for column, (title, picture) in enumerate(of_row)
    ]
    width, height = max(map(len, rows), default=1) * cell_width, len(rows) * cell_height
    return standalone(Markup(f'<svg viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'))


def _placed(picture: Markup, x: int, y: int) -> str:
    place = f'x="{x}" y="{y}" '
    if pixels := PIXELS.search(picture):
        return f'<image {place}width="{SIDE}" height="{SIDE}" style="image-rendering:pixelated" href="{pixels[1]}"/>'
    return OPENING.sub(f"<svg {place}", str(picture), count=1)


def _style() -> str:
    """Return the rules of the page that pictures need, with the colours of its light scheme."""
    light = resource("tdformer.pages", "page.css").partition("@media")[0]
    colours = dict(re.findall(r"--(\w+): (#\w+)", light))
    numbered = "".join(
        f"polyline.{name}{{stroke:{colour}}}text.{name},.dot.{name}{{fill:{colour}}}"
        for name, colour in colours.items()
        if re.fullmatch(r"c\d", name)
    )
    return (
        f"text{{fill:{colours['muted']};font:11px sans-serif}}.number{{fill:{colours['text']}}}"
        f".grid{{stroke:{colours['line']}}}.axis{{stroke:{colours['muted']}}}polyline{{fill:none;stroke-width:2.2}}"
        f".warm{{fill:{colours['c1']}}}.cool{{fill:{colours['c0']}}}.map{{background:{colours['soft']}}}{numbered}"
    )
