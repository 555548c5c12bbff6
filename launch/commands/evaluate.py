"""`tdformer evaluate`: the exact accuracy of a trained network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Ema, Evaluated, Json, Overrides, Processes, Which
from launch.output.tables import show_evaluation

if TYPE_CHECKING:
    from tdformer.inference.early_exit import Rule


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
    exit_by: Annotated[
        str | None,
        typer.Option(
            "--exit",
            metavar="CRITERION[=X]",
            help="Also report early exit: the answer of the first segment whose confidence, margin or entropy reaches X.",
        ),
    ] = None,
    mean_steps: Annotated[
        float | None, typer.Option(min=0, help="With --exit: find X for this mean number of time steps on half of the samples.")
    ] = None,
    analysis: Annotated[
        Path | None, typer.Option(help="With --exit: an analysis of this network with the part energy, for millijoules.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="With --exit: an SVG file of accuracy against mean time steps.")] = None,
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
        given = {"--suite": suite, "--baseline": baseline, "--data": data, "--exit": exit_by, "--mean-steps": mean_steps}
        given |= {"--picture": picture, "--analysis": analysis}
        options = ["--which", which, *(text for name, value in given.items() if value is not None for text in (name, str(value))), *flags]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.analysis.result_files import read_energy
    from tdformer.inference.corruptions import read_baseline, summary
    from tdformer.inference.evaluate import evaluate_subject, evaluate_suite
    from tdformer.inference.subjects import OfRun, OfWeights
    from tdformer.models.pretrained import is_weights_folder

    changes = [*(overrides or []), *([f"data.val={json.dumps(data, ensure_ascii=False)}"] if data else [])]
    subject = OfWeights(trained, changes) if is_weights_folder(trained) else OfRun(store.find(trained, which), ema, changes)
    if baseline and not suite:
        raise UserError("--baseline is for --suite: mCE compares errors on a suite.")
    others = read_baseline(baseline) if baseline else None
    leaving = _rule(exit_by, {"--mean-steps": mean_steps, "--picture": picture, "--analysis": analysis}, suite)
    energy = read_energy(analysis, subject.config().model.segments) if analysis else None
    result = evaluate_suite(subject, suite) if suite else evaluate_subject(subject, leaving, energy)
    if result is not None and picture:
        _draw(result["exit"], picture)
    if result is not None:
        show_evaluation(result | summary(result.get("data_sets", ()), others), as_json)


def _rule(exit_by: str | None, options: dict[str, Any], suite: Path | None) -> Rule | None:
    """Return when a sample leaves. options: those that need --exit. Raises UserError for what does not fit together."""
    from tdformer.inference.early_exit import parse_rule

    if exit_by is None:
        if alone := [name for name, value in options.items() if value is not None]:
            raise UserError(f"{alone[0]} is for --exit, such as --exit confidence.")
        return None
    if suite:
        raise UserError("--exit is for one data set; leave out --suite.")
    return parse_rule(exit_by, options["--mean-steps"])


def _draw(exit_report: dict[str, Any], picture: Path) -> None:
    from tdformer.pages import svg_charts, svg_files

    points = [(point["mean_time_steps"], point["top1"]) for point in exit_report["curve"]]
    drawn = svg_charts.curves([svg_charts.Curve(points, "", "c0", f"early exit by {exit_report['criterion']}")], "mean time steps")
    try:
        picture.write_text(svg_files.standalone(drawn) if drawn else "", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{picture} cannot be written ({error.strerror}); give another file to --picture.") from None
