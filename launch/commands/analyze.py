"""`tdformer analyze`: measure on a trained network what the paper claims."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.options import Ema, Json, Processes, Which

if TYPE_CHECKING:
    from collections.abc import Callable

    from tdformer.analysis.analyze import Progress
    from tdformer.distributed.context import DistContext

AnyNetwork = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR|CHECKPOINT|WEIGHTS", help="A run directory, one of its checkpoints, or an exported weights folder."),
]


def analyze(
    trained: AnyNetwork,
    baseline: Annotated[
        Path | None, typer.Option(help="Another network to compare with, such as the same one without feedback.", metavar="RUN_DIR|…")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The data set.", show_default="the validation set of the run")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to look at, at equal distances in the set.")] = 1000,
    suite: Annotated[
        Path | None, typer.Option(help="A corruption suite of the data set: attention is measured on the corrupted images too.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Show the attention maps of the sample with this key; can be repeated.", show_default="some")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure this part alone, such as energy; can be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the results.", show_default="analysis/NAME of the network")] = None,
    log: Annotated[bool, typer.Option("--log", help="Send the results to the run's MLflow run too.")] = False,
    which: Which = "latest",
    ema: Ema = False,
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Measure on a trained network what the paper claims: information between time steps, gradients, attention, energy.

    The results are analysis.json and report.html in one folder. After a kill, the same command keeps the parts that are done.
    """
    from tdformer.distributed.launch_environment import must_start

    if must_start(processes, os.environ):
        from launch.local_processes import run_processes

        given = {"--baseline": baseline, "--data": data, "--samples": samples, "--suite": suite, "--out": out, "--which": which}
        options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        options += [text for part in only or [] for text in ("--only", part)] + [text for key in image or [] for text in ("--image", key)]
        flags = [flag for flag, is_given in (("--ema", ema), ("--log", log), ("--json", as_json)) if is_given]
        raise typer.Exit(run_processes(processes, ["analyze", str(trained), *options, *flags]))

    from tdformer.analysis import analyze as analysis
    from tdformer.analysis.report import check_replaceable, write_report
    from tdformer.analysis.result_files import RESULT
    from tdformer.analysis.to_mlflow import log_files, mlflow_run_of
    from tdformer.distributed.context import init_distributed
    from tdformer.inference.networks import load_network

    with init_distributed() as context:
        network = context.on_all_ranks(lambda: load_network(trained, which, ema))
        place = context.on_all_ranks(lambda: mlflow_run_of(network) if log and context.is_rank0 else None)
        other = None if baseline is None else context.on_all_ranks(lambda: load_network(baseline, which, ema))
        folder = out or Path("analysis") / network.name.replace(" ", "-")
        context.on_all_ranks(lambda: check_replaceable(folder))
        request = analysis.Request(network, other, data, samples, only or [], folder, suite, image or [])
        result = analysis.analyze(request, context, _bars(context))
        if context.is_rank0:
            report = write_report(result, folder)
            for note in result["notes"]:
                typer.echo(f"note: {note}", err=True)
            if place:
                log_files(*place, [folder / RESULT, report])
            typer.echo(json.dumps(result) if as_json else f"analysis  {folder / RESULT}\nreport    {report}")


def _bars(context: DistContext) -> Progress:
    """Return what shows a progress bar on rank 0 alone."""
    from launch.output.progress import progress

    @contextmanager
    def nobody(description: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    return progress if context.is_rank0 else nobody
