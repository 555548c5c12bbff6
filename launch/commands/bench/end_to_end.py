"""`tdformer bench end-to-end`: training steps of a run with its loader, and their wait for data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Config, Json, Overrides
from launch.output.progress import progress
from launch.output.tables import show_tables

if TYPE_CHECKING:
    from tdformer.config import RunConfig
    from tdformer.distributed.context import DistContext


def bench_end_to_end(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="The number of optimizer steps, with the warm-up that is not measured.")] = 60,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Train on this many generated images of ImageNet's sizes.", show_default="the data of the run"),
    ] = None,
    stored: Annotated[
        Literal["wds", "ffcv"] | None, typer.Option("--format", help="The format of the generated set.", show_default="wds")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Keep the generated set here, about 0.3 MB per image.", show_default="a temporary folder"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run training steps with the loader processes of a run, and measure the share of a step that is spent waiting for data.

    The weights are random, nothing is evaluated, and nothing of the run is kept. For several processes start the command under
    torchrun. --images needs the extra `bench`.
    """
    from contextlib import nullcontext
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from tdformer.bench.conditions import conditions
    from tdformer.bench.end_to_end import check_steps, measure, warmup_steps
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.context import init_distributed

    if images is None and (stored or folder):
        raise UserError("--format and --folder are those of a generated set: give --images too, or leave them out")
    with init_distributed() as context, nullcontext(folder) if folder else TemporaryDirectory() as where:
        run = context.broadcast(context.on_all_ranks(lambda: load_config(config, overrides or [])))
        context.on_all_ranks(lambda: check_steps(run, steps, context.world_size))
        if images is not None:
            run = _with_photographs(run, Path(where), images, stored or "wds", context)
        found = conditions(context.device) | {"processes": context.world_size, "images": images, "image_size": run.data.image_size}
        found |= {key: getattr(run.training, key) for key in ("global_batch", "micro_batch", "precision", "kernels", "recompute")}
        found |= {"steps": steps, "steps_left_out": warmup_steps(run, context.world_size)}
        row = measure(run, steps, context)
    if row is None:
        return
    if as_json:
        typer.echo(json.dumps({"conditions": found, "rows": [asdict(row)]}))
        return
    show_tables({"conditions": [found], "rows": [asdict(row)]})


def _with_photographs(run: RunConfig, folder: Path, images: int, stored: Literal["wds", "ffcv"], context: DistContext) -> RunConfig:
    """Generate the set on rank 0, and return on all ranks the configuration that trains on it."""
    import multiprocessing
    from functools import partial

    from tdformer.bench.end_to_end import with_photographs

    # `prepare` starts the helper process from which the loaders fork their workers too.
    multiprocessing.set_forkserver_preload(["data_pipelines.loading.micro_batches"])
    with progress("generating", 2 * images) as advance:
        generate = partial(with_photographs, run, folder, images, stored, processes=os.cpu_count() or 1, progress=advance)
        return context.broadcast(context.on_all_ranks(lambda: generate() if context.is_rank0 else None))
