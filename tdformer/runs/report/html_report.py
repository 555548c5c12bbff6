"""Writes a comparison as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

from tdformer.pages import self_contained
from tdformer.pages.self_contained import resource
from tdformer.runs.comparison import Comparison
from tdformer.runs.report.figures import figures
from tdformer.runs.report.page import page

PACKAGE = "tdformer.runs.report"
GENERATOR = "tdformer runs compare"
"""The program that the page names as its generator."""


def render(comparison: Comparison) -> str:
    """Return the page as text."""
    context = page(comparison) | {"figures": figures(comparison)}
    return self_contained.render(resource(PACKAGE, "report.html.j2"), GENERATOR, context, resource(PACKAGE, "report.js"))


def write(path: Path, comparison: Comparison, force: bool) -> None:
    """Write the report. Raises UserError if the file cannot be written, or if it exists, is no report, and `force` is off."""
    check_replaceable(path, force)
    self_contained.write(path, render(comparison), "--html")


def check_replaceable(path: Path, force: bool) -> None:
    """Check that a report may be written to this path. Only another report may be replaced, unless `force` is on. Raises UserError."""
    self_contained.check_replaceable(path, GENERATOR, "--html", force)
