"""Writes a comparison as one self-contained HTML file. The page requests nothing, and no text from a run can be executed.

Jinja escapes every text. As a second barrier, the content security policy of the page allows only the script and the style with the
hashes of ours.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from tdformer.runs.comparison import Comparison
from tdformer.runs.report.figures import figures
from tdformer.runs.report.page import page

GENERATOR = "tdformer runs compare"
"""The program that the page names as its generator."""
MARK = f'<meta name="generator" content="{GENERATOR}">'


def render(comparison: Comparison) -> str:
    """Return the page as text."""
    style, script, template = (_resource(name) for name in ("report.css", "report.js", "report.html.j2"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # Nothing is escaped in <style> and <script>. Both are our own files, and hold no value of a run.
    ours = {"style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script)}
    context = page(comparison) | {"generator": GENERATOR, "figures": figures(comparison)}
    return environment.from_string(template).render(**context, **ours)


def write(path: Path, comparison: Comparison, force: bool) -> None:
    """Write the report. Raises UserError if the file cannot be written, or if it exists, is no report, and `force` is off."""
    check_replaceable(path, force)
    text = render(comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"report {path} cannot be written ({error.strerror}); choose another --html.") from None


def check_replaceable(path: Path, force: bool) -> None:
    """Check that a report may be written to this path. Only another report may be replaced, unless `force` is on. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file to --html.")
    try:
        with path.open("rb") as file:
            is_report = MARK.encode() in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"report {path} cannot be written ({error.strerror}); choose another --html.") from None
    if not (is_report or force):
        raise UserError(f"{path} is there and is no report of this command; choose another --html, or replace it with --force.")


def _resource(name: str) -> str:
    return resources.files("tdformer.runs.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
