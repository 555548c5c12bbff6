"""Writes a page as one self-contained HTML file. The page requests nothing, and no text from a run can be executed.

Jinja escapes every text. As a second barrier, the content security policy of the page allows only the script and the style with the
hashes of ours, and pictures that are in the page itself.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file


def render(template: str, generator: str, context: dict[str, Any], script: str = "") -> str:
    """Return a page as text.

    template: Jinja's text of the page, which puts `style`, `script` and `policy` in their places. generator: the command that makes the
    page, which its head names. context: the variables of the template.
    """
    style = resource("tdformer.pages", "page.css")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'"
    # Nothing is escaped in <style> and <script>. Both are our own files, and hold no value of a run.
    ours = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy), "generator": Markup(_mark(generator))}
    return environment.from_string(template).render(**context, **ours)


def write(path: Path, text: str, option: str) -> None:
    """Write a page. option: the option that chose the path. Raises UserError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"report {path} cannot be written ({error.strerror}); choose another {option}.") from None


def check_replaceable(path: Path, generator: str, option: str, force: bool | None = None) -> None:
    """Check that a page may be written to this path. Only a page of the same command may be replaced, unless `force` is on.

    force: the option --force of the command. None if it has none.

    Raises UserError.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file to {option}.")
    try:
        with path.open("rb") as file:
            is_report = _mark(generator).encode() in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"report {path} cannot be written ({error.strerror}); choose another {option}.") from None
    if not (is_report or force):
        way = "move it away" if force is None else "replace it with --force"
        raise UserError(f"{path} is there and is no report of this command; choose another {option}, or {way}.")


def resource(package: str, name: str) -> str:
    """Return the text of a file that is part of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _mark(generator: str) -> str:
    return f'<meta name="generator" content="{generator}">'


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
