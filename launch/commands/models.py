"""`tdformer models`: the networks that have a name."""

from __future__ import annotations

from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.tables import show_rows


def models(
    pattern: Annotated[str, typer.Argument(help="A part of the names, or a pattern with * and ?.")] = "*",
    as_json: Json = False,
) -> None:
    """List the networks that can be made by name, with their parameters and the results of the paper."""
    from fnmatch import fnmatch

    from tdformer.models.registry import MODELS, parameter_counts

    rows: list[dict[str, object]] = []
    for name, model in MODELS.items():
        if fnmatch(name, pattern) or pattern in name:
            total, of_backbone = parameter_counts(model.config)
            rows.append(
                {
                    "name": name,
                    "parameters": total,
                    "backbone_parameters": of_backbone,
                    "time_steps": model.config.time_steps,
                    "segments": model.config.segments,
                    "image_size": model.image_size,
                    "dataset": model.dataset,
                    "paper": model.paper,
                }
            )
    if not rows:
        raise UserError(f"no model's name is like {pattern!r}; `tdformer models` lists them all.")
    show_rows(rows, as_json, "models")
