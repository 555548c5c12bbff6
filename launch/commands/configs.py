"""`tdformer configs`: the configurations that come with the program."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.tables import show_rows


def configs(
    pattern: Annotated[str, typer.Argument(help="A part of the names, or a pattern with * and ?.")] = "*",
    as_json: Json = False,
) -> None:
    """List the configurations that come with the program: `tdformer train NAME` runs one, from any folder."""
    from tdformer.config import shipped
    from tdformer.config.yaml_io import load_config

    rows: list[dict[str, object]] = []
    for name in shipped.names():
        if fnmatch(name, pattern) or pattern in name:
            path = shipped.path_of(name)
            config = load_config(path)
            rows.append(
                {
                    "name": name,
                    "aims_at_top1": shipped.aim_of(path),
                    "network": f"{config.model.backbone.family}{' with feedback' if config.model.feedback else ''}",
                    "data": config.data.train,
                    "image_size": config.data.image_size,
                    "epochs": config.training.epochs,
                    "global_batch": config.training.global_batch,
                    "reference": config.training.reference,
                }
            )
    if not rows:
        raise UserError(f"no configuration's name is like {pattern!r}; `tdformer configs` lists them all.")
    show_rows(rows, as_json, "configs")
