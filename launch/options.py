"""Arguments that several commands have in common."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

plain_typer = partial(typer.Typer, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Target = Annotated[Path, typer.Argument(metavar="CONFIG|RUN_DIR", help="A YAML file to start from, or a run directory to go on with.")]
Trained = Annotated[Path, typer.Argument(metavar="RUN_DIR|CHECKPOINT", help="A run directory, or checkpoints/step-… within one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the configuration; values are YAML.")
]
Processes = Annotated[int, typer.Option(min=1, help="Processes to start on this machine, one per GPU.")]
Which = Annotated[
    Literal["latest", "best"],
    typer.Option(help="The latest checkpoint, or the best by validation top-1 (of the EMA, if on)."),
]
Ema = Annotated[bool, typer.Option("--ema", help="The averaged weights (of a run with training.ema_decay).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
