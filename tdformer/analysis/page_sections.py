"""The building blocks of analysis pages: sections with tables, figures and galleries, rendered as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from tdformer.pages import self_contained, svg_files
from tdformer.pages.self_contained import resource


@dataclass(frozen=True)
class Table:
    """A table of texts. Columns after the first are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture with its title."""

    title: str
    picture: Markup


@dataclass(frozen=True)
class Section:
    """One part of the analysis."""

    title: str
    paper: str
    """What the paper says of it."""
    method: str
    """What is measured, and how."""
    caution: str
    """What keeps bias out, or what the numbers do not say."""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    gallery: list[list[Figure]] = field(default_factory=list)
    """Rows of small pictures."""


def render_page(title: str, subtitle: str, sections: Sequence[Section], generator: str, footer: str) -> str:
    """Return the page as text."""
    facts = {"title": title, "subtitle": subtitle, "sections": sections, "footer": footer}
    return self_contained.render(resource("tdformer.analysis", "page.html.j2"), generator, facts)


def write_figures(sections: Sequence[Section], folder: Path) -> None:
    """Write every figure as an SVG file that is named after its title, and every gallery as one. Raises UserError."""
    texts = {f"{figure.title}": svg_files.standalone(figure.picture) for section in sections for figure in section.figures}
    texts |= {
        section.title: svg_files.grid([[(figure.title, figure.picture) for figure in row] for row in section.gallery])
        for section in sections
        if section.gallery
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for title, text in texts.items():
            _replace(folder / f"{_file_name(title)}.svg", text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); give another --out.") from None


def _file_name(title: str) -> str:
    """Return a title without the legend in brackets at its end, as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r" \([^()]*\)$", "", title).lower()).strip("-")


def _replace(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
