"""A comparison as one self-contained HTML file: no request to anywhere, and nothing in a name or a configuration can run.

Jinja escapes every text. Should one slip through nevertheless, the page's own policy lets a browser run one script and apply one style
alone: those with the hashes of ours.
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
from tdformer.runs import tables
from tdformer.runs.comparing import Comparison
from tdformer.runs.figures import figures

GENERATOR = "tdformer runs compare"
MARK = f'<meta name="generator" content="{GENERATOR}">'


def render(comparison: Comparison) -> str:
    style, script, template = (_own(name) for name in ("report.css", "report.js", "report.html.j2"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # In <style> and <script> nothing is escaped: these two are ours, whole, and hold no value of a run.
    ours = {"style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script)}
    context = tables.page(comparison) | {"generator": GENERATOR, "figures": figures(comparison)}
    return environment.from_string(template).render(**context, **ours)


def write(path: Path, comparison: Comparison, force: bool) -> None:
    """Raises UserError where the file cannot be written, or is none of ours and `force` does not say so."""
    check_free(path, force)
    text = render(comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"report {path} cannot be written ({error.strerror}); choose another --html.") from None


def check_free(path: Path, force: bool) -> None:
    """Before anything is read: a report may be replaced by a report, nothing else may."""
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


def _own(name: str) -> str:
    return resources.files("tdformer.runs").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
