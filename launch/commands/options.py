"""Arguments and options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

plain_typer = partial(typer.Typer, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of a run, or a name from `tdformer configs`.")]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG|RUN_DIR",
        help="A YAML file, or a name from `tdformer configs`, starts a new run; a run directory continues its run.",
    ),
]
Evaluated = Annotated[Path, typer.Argument(metavar="RUN|WEIGHTS", help="A run directory, a checkpoint, or a weights folder.")]
Trained = Annotated[Path, typer.Argument(metavar="RUN_DIR|CHECKPOINT", help="A run directory, or the folder of one of its checkpoints.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="These replace values of the configuration; they are YAML.")
]
Processes = Annotated[int, typer.Option(min=1, help="The number of processes to start on this machine, one per GPU.")]
Workers = Annotated[int | None, typer.Option("--processes", min=1, help="Processes that share the work.", show_default="all cores")]
PatienceMinutes = Annotated[
    float, typer.Option("--patience", min=0, help="Minutes to try again what cannot be read now, before the command stops with code 75.")
]
RunDirOption = Annotated[
    Path | None, typer.Option(help="The folder of the run; an existing run is continued.", show_default="a new folder in `output`")
]
Which = Annotated[
    Literal["latest", "best"],
    typer.Option(help="The latest checkpoint, or the best by validation top-1 (of the EMA weights if there are any)."),
]
Ema = Annotated[bool, typer.Option("--ema", help="Use the averaged weights of a run with training.ema_decay.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

RUNS = Path("runs")
"""The default folder of runs, as in `output` of a configuration."""
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="KEY=VALUE", help="Keep only runs with this value, such as state=failed; can be repeated."),
]
