"""`tdformer evaluate`: the exact accuracy of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.options import Ema, Json, Overrides, Processes, Trained, Which
from launch.output.tables import show_evaluation

if TYPE_CHECKING:
    from tdformer.config import RunConfig


def evaluate(
    trained: Trained,
    overrides: Overrides = None,
    which: Which = "latest",
    suite: Annotated[
        Path | None, typer.Option(help="Evaluate on every data set in this folder, such as the corruptions of ImageNet-C.")
    ] = None,
    ema: Ema = False,
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Compute the accuracy of a checkpoint on the validation set. Every sample counts once, on any number of processes."""
    from tdformer.checkpoint import store
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.launch_environment import must_start

    if must_start(processes, os.environ):
        from launch.local_processes import run_processes

        flags = [flag for flag, is_given in (("--ema", ema), ("--json", as_json)) if is_given]
        options = ["--which", which, *(["--suite", str(suite)] if suite else []), *flags]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.checkpoint.format import check
    from tdformer.inference.evaluate import evaluate_checkpoint, evaluate_suite

    checkpoint = store.find(trained, which)

    def load() -> RunConfig:
        if not checkpoint.config.exists():
            check(checkpoint)  # says what is missing, and what to do
        return load_config(checkpoint.config, overrides or [])

    result = evaluate_suite(load, checkpoint, ema, suite) if suite else evaluate_checkpoint(load, checkpoint, ema)
    if result is not None:
        show_evaluation(result, as_json)
