"""`tdformer runs list`: one line per run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands.options import RUNS, Filters, Json


def list_runs(
    folder: Annotated[Path, typer.Argument(help="A folder of runs; folders of runs within it, such as sweeps, are searched too.")] = RUNS,
    metric: Annotated[str, typer.Option(help="The metric to show, such as val/top1, val/loss or train/loss.")] = "val/top1",
    sort: Annotated[Literal["newest", "best", "name", "hours"], typer.Option(help="The order; best is by the metric.")] = "newest",
    filters: Filters = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show at most this many runs.")] = None,
    as_json: Json = False,
) -> None:
    """List all runs with their state, their progress, the metric, and their cost."""
    from launch.output.runs import print_json, show_list
    from tdformer.runs import json_output, reader
    from tdformer.runs.comparison import TOP1, best_first, check_metrics
    from tdformer.runs.cost import hours_of
    from tdformer.runs.discovery import find_runs
    from tdformer.runs.filters import filtered

    runs = reader.read_all(find_runs([folder]), [metric], reader.SAMPLES_FOR_LIST)
    check_metrics(runs, [metric] if metric != TOP1 else [])
    runs = filtered(runs, filters or [])
    if sort == "best":
        runs = best_first(runs, metric)
    elif sort == "name":
        runs.sort(key=lambda run: str(run.path))
    else:
        runs.sort(key=lambda run: -run.changed if sort == "newest" else -(hours_of(run) or 0))
    runs = runs[:limit]
    if as_json:
        print_json({"runs": [json_output.run_as_dict(run, [metric]) for run in runs]})
    else:
        show_list(runs, metric)
