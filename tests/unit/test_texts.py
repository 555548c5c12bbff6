"""Docstrings can be read alone: none of them continues the name above it. CONTRIBUTING.md states the rule."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONTINUES = re.compile(
    r"(Of|As|And|Or|But|So|That|Whether|Until|Beside|Its|Those|Else|The same|Such as|Up to)\b"
    r"|(In|On|At|By|With|Without|Around|Inside|To|From|For|After|Before|Behind|Between)\b[^,:]*(\.|$)"
)
"""A text matches if it goes on with a sentence that the name above it began."""


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring, and of each string that documents the assignment above it."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)  # a lambda's is one expression
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
                yield statement.lineno, statement.value.value.strip()


def continuations(source: str) -> list[str]:
    return [f"line {line}: {text.splitlines()[0]}" for line, text in texts(ast.parse(source)) if CONTINUES.match(text.replace("\n", " "))]


def test_no_docstring_continues_the_name_above_it() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) > 100
    found = {name: lines for name in listed if (lines := continuations((REPOSITORY / name).read_text()))}
    assert found == {}


def test_a_continuation_is_found() -> None:
    constants = 'LIMIT = 3\n"""Of a run."""\nPLACE = 4\n"""In the training set."""\n'
    source = constants + 'def age(run):\n    """With a lock, return its age in seconds."""\n'
    assert continuations(source) == ["line 2: Of a run.", "line 4: In the training set."]
