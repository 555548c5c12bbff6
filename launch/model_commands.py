"""`tdformer models` and `tdformer bench`: networks by name, and what they cost."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.options import Json, plain_typer
from launch.output import progress, show_rows

bench_app = plain_typer(help="Measure what a network costs, beside a peer.")


def models(
    pattern: Annotated[str, typer.Argument(help="A part of their names, or a pattern with * and ?.")] = "*",
    as_json: Json = False,
) -> None:
    """Networks that can be made by name, with their parameters, and what the paper states of them."""
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


@bench_app.command("memory")
def bench_memory(
    model: Annotated[str, typer.Option(help="A name from `tdformer models`.")] = "tdformer_hst10_768",
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels; default: what the model was published for.")] = None,
    time_steps: Annotated[list[int], typer.Option(help="Can be given several times.")] = [4, 8],  # noqa: B006  # typer copies it
    segments: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    peak: Annotated[bool, typer.Option("--peak", help="Also measure how much the step's peak memory grows per image.")] = False,
    as_json: Json = False,
) -> None:
    """Megabytes that one image keeps for the backward pass, and the FLOPs, for every recompute policy; beside spikingjelly's QKFormer.

    Saved is what waits between forward and backward, the same on every machine; peak, measured on this one, is what must fit.
    Real training steps in float32 on the CPU: for the largest network two minutes and 5 GB of memory, with --peak six and 10 GB.
    """
    from dataclasses import asdict

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler warns where there is no GPU
    from tdformer.bench.memory import measure
    from tdformer.models.registry import changed, find_model

    config = changed(model, {} if segments is None else {"segments": segments})
    size, stride = image_size or find_model(model).image_size, config.backbone.stride
    if size % stride:
        raise UserError(f"--image-size must be a multiple of {stride}, the network's stride, got {size}")
    if any((size // stride) ** 2 * steps < 2 * config.segments for steps in time_steps):
        raise UserError(f"--image-size {size} leaves one token and one time step: BatchNorm needs more than one value, give a larger one")
    rows = []
    with progress("measuring", None) as advance:
        for row in measure(model, config, size, time_steps, peak=peak):
            rows.append({key: value for key, value in asdict(row).items() if value is not None})
            advance(1)
    show_rows(rows, as_json, "rows")
