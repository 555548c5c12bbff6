"""The building blocks of analysis pages: sections with tables, figures and galleries, rendered as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from tdformer.pages import self_contained
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
