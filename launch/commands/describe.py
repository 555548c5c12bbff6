"""`tdformer describe`: the size and the schedule of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.commands.options import Config, Json, Overrides
from launch.output.tables import show, show_notes


def describe(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="The number of processes of the run, over all machines.")] = 1,
    as_json: Json = False,
) -> None:
    """Show what a configuration would run: parameters, batches, steps, learning rate. Nothing is trained."""
    from tdformer.config.yaml_io import load_config
    from tdformer.estimate.describe import describe as describe_run

    described = describe_run(load_config(config, overrides or []), processes, lr_by_epoch=as_json)
    notes = [] if as_json else described.pop("notes")
    show(described, as_json)
    show_notes(notes)
