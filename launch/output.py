"""What the commands print: tables for people, JSON for programs, progress while they work."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_LINES = 30.0


def show_rows(rows: list[dict[str, object]], as_json: bool, name: str) -> None:
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    table = Table(box=None)
    for column, value in rows[0].items():
        table.add_column(column.replace("_", " "), justify="right" if isinstance(value, int | float) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(for_people, row.values()))
    needed = Console(width=1000).measure(table).maximum  # a name cut off is worse than a long line
    Console(width=max(needed, Console().width), highlight=False).print(table)


def show(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), for_people(value))
    Console(soft_wrap=True, highlight=False).print(table)


def show_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """Of one data set, or of a suite of them: a row each, then what they have in common."""
    if not as_json and "data_sets" in result:
        show_rows([{**row, "top1_by_segment": for_people(row["top1_by_segment"])} for row in result.pop("data_sets")], False, "")
    show(result, as_json)


def for_people(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(for_people, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress(description: str, total: int | None) -> Iterator:
    """A bar on a terminal, a line every half minute elsewhere; gives a function that advances it by a number. total None: not known."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        told, count = time.monotonic(), 0

        def advance(done: int) -> None:
            nonlocal told, count
            progress.advance(task, done)
            count += done
            if not console.is_terminal and time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                print(f"{description}: {count} of {total or '?'}", file=sys.stderr, flush=True)

        yield advance
