"""`tdformer bench memory`: memory and FLOPs of a training step under every recompute policy."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.progress import progress
from launch.output.tables import show_rows


def bench_memory(
    model: Annotated[str, typer.Option(help="A name from `tdformer models`.")] = "tdformer_hst10_768",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="The side of an image in pixels.", show_default="that of the published model")
    ] = None,
    time_steps: Annotated[list[int], typer.Option(help="The number of time steps; can be repeated.")] = [4, 8],  # noqa: B006  # typer copies it
    segments: Annotated[int | None, typer.Option(help="The number of segments.", show_default="that of the model")] = None,
    peak: Annotated[bool, typer.Option("--peak", help="Measure also the growth of the step's peak memory per image.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the megabytes that one image keeps for the backward pass, and the FLOPs, under every recompute policy.

    Rows of spikingjelly's QKFormer follow as the reference. "Saved" bytes wait between forward and backward pass, and are the same on
    every machine. "Peak" bytes are measured on this machine, and must fit into its memory. The steps are real ones, in float32 on the
    CPU. The largest network takes two minutes and 5 GB of memory, with --peak six minutes and 10 GB.
    """
    from dataclasses import asdict

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Without it, torch's profiler warns where there is no GPU.
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
