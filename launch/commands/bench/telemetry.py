"""`tdformer bench telemetry`: the overhead of a run's telemetry."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.commands.options import Config, Json, Overrides
from launch.output.progress import progress
from launch.output.tables import show_rows


def bench_telemetry(
    config: Config,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=2, help="Each round is training.log_every steps without telemetry and as many with it.")] = 20,
    as_json: Json = False,
) -> None:
    """Measure which share of a step telemetry adds: times of the step's parts, firing rates, utilisation. No data is needed."""
    from dataclasses import asdict

    from tdformer.bench.telemetry_overhead import measure
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.context import init_distributed

    run = load_config(config, overrides or [])
    with init_distributed() as context, progress("measuring", rounds) as advance:
        rows = [asdict(row) for row in measure(run, rounds, context, advance)]
    show_rows(rows, as_json, "rows")
