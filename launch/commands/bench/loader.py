"""`tdformer bench loader`: the speed of data loaders, and their startup."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.progress import progress
from launch.output.tables import show_tables


def bench_loader(
    images: Annotated[int, typer.Option(min=1, help="The number of images to generate; each round loads them with every pipeline.")] = 2000,
    folder: Annotated[
        Path | None, typer.Option(help="Keep the images here for the next time, about 1 MB each.", show_default="a temporary folder")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="The number of loader processes.", show_default="all cores")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds over which medians are taken.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure images per second of WebDataset and FFCV, beside torchvision's ImageFolder and FFCV's own Loader.

    All pipelines apply the same transforms to photographs of ImageNet's usual sizes, from the page cache, and take turns. The startup
    is measured too: the seconds until the first batch of a new run, and of a run that resumes in the middle of an epoch, also
    with as many samples as ImageNet. The extras `bench` and `ffcv` are needed.
    """
    from contextlib import nullcontext
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from tdformer.bench.loader import measure, prepare_sets
    from tdformer.bench.loader_pipelines import PIPELINES, STORAGE, LoaderSetting
    from tdformer.bench.startup import MEASURED_SETS, measure_startup

    if images < batch:
        raise UserError(f"--images {images} do not fill one batch of {batch}; generate more, or lower --batch")
    cores = os.cpu_count() or 1
    setting = LoaderSetting(batch, workers or cores, images // batch)
    conditions: dict[str, object] = {"images": images, "workers": setting.workers, "batch": batch, "rounds": rounds, "cores": cores}
    conditions["load_average"] = os.getloadavg()[0]
    with nullcontext(folder) if folder else TemporaryDirectory() as where, TemporaryDirectory() as large:
        with progress("generating", images * (1 + len(STORAGE))) as advance:
            sets = prepare_sets(Path(where), images, processes=cores, progress=advance)
        with progress("measuring", rounds * len(PIPELINES)) as advance:
            rows = [asdict(row) for row in measure(sets, setting, rounds, PIPELINES, progress=advance)]
        with progress("starting", rounds * MEASURED_SETS) as advance:
            startup = [asdict(row) for row in measure_startup(sets, setting, rounds, Path(large), progress=advance)]
    if as_json:
        typer.echo(json.dumps({"conditions": conditions, "rows": rows, "startup": startup}))
        return
    show_tables({"conditions": [conditions], "rows": rows, "startup": startup})
