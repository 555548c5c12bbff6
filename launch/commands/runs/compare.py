"""`tdformer runs compare`: runs side by side, on the terminal or as an HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import RUNS, Filters, Json


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN|FOLDER]...", help="Run directories, and folders of runs.", show_default="runs"),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="A metric to compare; can be repeated; the first ranks.",
            show_default="val/top1, val/top1_ema if any, val/loss",
        ),
    ] = None,
    filters: Filters = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with tables and curves as one HTML file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let the report replace a file that is no report.")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs: what differs, the metrics, mean ± standard deviation over seeds, speed and cost, and the numbers of the paper."""
    from launch.output.comparison import show_comparison
    from launch.output.runs import print_json
    from tdformer.runs import comparison, json_output, reader
    from tdformer.runs.discovery import find_runs
    from tdformer.runs.filters import filtered

    if html:
        from tdformer.runs.report import html_report

        html_report.check_replaceable(html, force)
    found = filtered(reader.read_all(find_runs(runs or [RUNS]), metrics or []), filters or [])
    if not found:
        raise UserError("no run fulfils every --filter; `tdformer runs list` shows those there are.")
    compared = comparison.compare(found, metrics or [])
    if html:
        html_report.write(html, compared, force)
    if as_json:
        print_json(json_output.comparison_as_dict(compared))
    else:
        show_comparison(compared)
        if html:
            typer.echo(f"report            {html}")
