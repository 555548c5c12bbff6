"""`tdformer runs show`: everything about one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json

if TYPE_CHECKING:
    from tdformer.runs.run import Run


def show_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder of a recipe.")],
    as_json: Json = False,
) -> None:
    """Show one run: configuration that is not the default, sessions, metrics, checkpoints, and how to continue.

    The folder that `tdformer recipe` makes shows its stages. So does the run of a stage.
    """
    from launch.output.runs import print_json, show_one
    from launch.output.tables import show_rows
    from tdformer.runs import chain, reader
    from tdformer.runs.discovery import is_run

    if not is_run(run) and (request := chain.request_in(run)) is not None:
        stages = [chain.described(run / name) for name in request.stages]
        show_rows(stages, as_json, "stages")
        if not as_json and any(stage["state"] != "finished" for stage in stages):
            typer.echo(f"\nIt goes on with: tdformer recipe {run}")
        return
    if not is_run(run) and chain.chain_around(run):
        raise UserError(f"{run} is a stage of a recipe that has not begun; `tdformer runs show {run.parent}` shows all of them.")
    if not is_run(run):
        raise UserError(
            f"{run} is no run directory: it has neither config.yaml nor metrics.jsonl; `tdformer runs list` names those there are."
        )
    metrics = reader.read(run).metrics.names()
    found = reader.read(run, metrics, samples=reader.SAMPLES_FOR_CURVE)  # The names are known now, so the best of each can be found.
    if as_json:
        print_json(_as_dict(found, metrics))
    else:
        show_one(found, metrics)
        if around := chain.chain_around(run):
            typer.echo(f"\nIt is a stage of the recipe in {run.parent}:")
            show_rows([chain.described(stage) for stage in around], False, "stages")


def _as_dict(run: Run, metrics: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from tdformer.runs import chain, flat_config, json_output

    own = {key: value for key, value in run.config.items() if value != flat_config.defaults().get(key)}
    sessions = [asdict(session) for session in run.sessions]
    return {
        **json_output.run_as_dict(run, metrics),
        **{"stages": [chain.described(stage) for stage in chain.chain_around(run.path)]},
        **{"mlflow_run_id": run.mlflow_id, "checkpoints": run.checkpoints, "sessions": sessions, "not_default": own, "config": run.config},
    }
