"""`tdformer evaluate`: the exact accuracy of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
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
    baseline: Annotated[
        Path | None, typer.Option(metavar="JSON", help="What --suite --json printed for another run; mCE is relative to it.")
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
        given = {"--suite": suite, "--baseline": baseline}
        options = ["--which", which, *(text for name, path in given.items() if path for text in (name, str(path))), *flags]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.checkpoint.format import check
    from tdformer.inference.corruptions import read_baseline, summary
    from tdformer.inference.evaluate import evaluate_checkpoint, evaluate_suite

    checkpoint = store.find(trained, which)

    def load() -> RunConfig:
        if not checkpoint.config.exists():
            check(checkpoint)  # says what is missing, and what to do
        return load_config(checkpoint.config, overrides or [])

    if baseline and not suite:
        raise UserError("--baseline is for --suite: mCE compares errors on a suite.")
    others = read_baseline(baseline) if baseline else None
    result = evaluate_suite(load, checkpoint, ema, suite) if suite else evaluate_checkpoint(load, checkpoint, ema)
    if result is not None:
        show_evaluation(result | summary(result.get("data_sets", ()), others), as_json)
