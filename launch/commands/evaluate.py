"""`tdformer evaluate`: the exact accuracy of a trained network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Ema, Evaluated, Json, Overrides, Processes, Which
from launch.output.tables import show_evaluation


def evaluate(
    trained: Evaluated,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="The data set, a folder or URL.", show_default="the validation set of the run")] = None,
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
    """Compute the accuracy of a network on the validation set. Every sample counts once, on any number of processes.

    Overrides change how it is evaluated, such as data.image_size=288 or model.time_steps=8.
    """
    from tdformer.checkpoint import store
    from tdformer.distributed.launch_environment import must_start

    if must_start(processes, os.environ):
        from launch.local_processes import run_processes

        flags = [flag for flag, is_given in (("--ema", ema), ("--json", as_json)) if is_given]
        given = {"--suite": suite, "--baseline": baseline, "--data": data}
        options = ["--which", which, *(text for name, path in given.items() if path for text in (name, str(path))), *flags]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.inference.corruptions import read_baseline, summary
    from tdformer.inference.evaluate import evaluate_subject, evaluate_suite
    from tdformer.inference.subjects import OfRun, OfWeights
    from tdformer.models.pretrained import is_weights_folder

    changes = [*(overrides or []), *([f"data.val={json.dumps(data, ensure_ascii=False)}"] if data else [])]
    subject = OfWeights(trained, changes) if is_weights_folder(trained) else OfRun(store.find(trained, which), ema, changes)
    if baseline and not suite:
        raise UserError("--baseline is for --suite: mCE compares errors on a suite.")
    others = read_baseline(baseline) if baseline else None
    result = evaluate_suite(subject, suite) if suite else evaluate_subject(subject)
    if result is not None:
        show_evaluation(result | summary(result.get("data_sets", ()), others), as_json)
