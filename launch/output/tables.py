"""Prints values and rows: as tables for people, as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_rows(rows: list[dict[str, object]], as_json: bool, name: str) -> None:
    """Print rows with the same keys. In JSON they are a list under `name`."""
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    table = Table(box=None)
    for column, value in rows[0].items():
        table.add_column(column.replace("_", " "), justify="right" if isinstance(value, int | float) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(for_people, row.values()))
    print_full_width(table)


def show_tables(tables: dict[str, list[dict[str, object]]]) -> None:
    """Print several tables of rows for people, with an empty line after each."""
    for name, rows in tables.items():
        show_rows(rows, False, name)
        typer.echo()


def show(values: dict[str, object], as_json: bool) -> None:
    """Print names and values, one line for each."""
    if as_json:
        typer.echo(json.dumps(values))
        return
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), for_people(value))
    Console(soft_wrap=True, highlight=False).print(table)


def show_notes(notes: Sequence[str]) -> None:
    """Print notes for the user to stderr, one line for each."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def show_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """Print the result on one data set, or on a suite: one row for each data set, then what they have in common."""
    if not as_json and "data_sets" in result:
        show_rows([{**row, "top1_by_segment": for_people(row["top1_by_segment"])} for row in result.pop("data_sets")], False, "")
        _show_errors(result)
    if not as_json and "exit" in result:
        exit_report = result.pop("exit")
        rows = [{**point, "share_by_segment": for_people(point["share_by_segment"])} for point in exit_report.pop("curve")]
        show_rows(rows[:: max(1, len(rows) // 12)], False, "")
        result |= {f"exit_{name}": value for name, value in exit_report.items()}
    show(result, as_json)


def _show_errors(result: dict[str, Any]) -> None:
    """Print errors by kind and severity, and take them out of the result. Nothing if the suite has no such names."""
    errors, means, ratios = result.pop("errors", {}), result.pop("mean_errors", {}), result.pop("ce", {})
    severities = sorted({severity for values in errors.values() for severity in values})
    rows: list[dict[str, object]] = [
        {
            "error in percent": kind,
            **{f"severity {severity}": f"{values[severity]:.2f}" if severity in values else "" for severity in severities},
            "mean": f"{means[kind]:.2f}",
            **({"CE": f"{ratios[kind]:.1f}"} if ratios else {}),
        }
        for kind, values in errors.items()
    ]
    if rows:
        show_rows(rows, False, "")


def for_people(value: object) -> str:
    """Return a value as text: integers with thousands separators, floats with four significant digits."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(for_people, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def show_texts(columns: Sequence[str] | None, rows: Sequence[Sequence[str]], texts: Sequence[int]) -> None:
    """Print a table. texts: the numbers of the columns that are not numeric. Names are printed as they are, not as markup of rich."""
    table = Table(box=None, show_header=columns is not None, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns or rows[0] if rows else ()):
        table.add_column(Text(name), justify="left" if index in texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    print_full_width(table)


def print_full_width(table: Table) -> None:
    """Print a table as wide as it needs. A line that is longer than the terminal is better than a name that is cut off."""
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(needed, Console().width), highlight=False).print(table)
