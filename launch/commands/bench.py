"""`tdformer bench`: what networks, loaders and runs cost, beside their peers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launch.options import Config, Json, Overrides, plain_typer
from launch.output import progress, show_rows

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["auto", "fused", "plain"]

bench_app = plain_typer(help="Measure what networks, loaders and runs cost, beside their peers.")


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


@bench_app.command("step")
def bench_step(
    embed_dims: Annotated[int | None, typer.Option(min=64, help="Channels of the last stage.", show_default="768; CPU 384")] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="Pixels.", show_default="224; CPU 96")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images.", show_default="each network's fastest; CPU 4")] = None,
    time_steps: Annotated[int, typer.Option(min=1, help="T.")] = 4,
    segments: Annotated[int, typer.Option(min=1, help="Of the networks with feedback.")] = 2,
    precision: Annotated[Precision | None, typer.Option(help="bf16 and fp16 are autocast.", show_default="bf16; CPU fp32")] = None,
    kernels: Annotated[Kernels, typer.Option(help="As training.kernels.")] = "fused",
    device: Annotated[Device | None, typer.Option(help="What to measure.", show_default="the GPU, if there is one")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="One contender, can be given several times.", show_default="all", metavar="NAME")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each contender takes one turn in each; medians are given.")] = 15,
    as_json: Json = False,
) -> None:
    """Training steps of QKFormer and TDFormer, of spikingjelly's QKFormer, and what the device can do at most; in turns, in one process.

    Contenders: backbone, tdformer (feedback in all blocks of the last stage), spikingjelly-qkformer, tdformer-recompute (block_segment),
    tdformer-engine (as `tdformer train` runs it: DeepSpeed, exact sums). Random images, no data. On two CPU cores two minutes, and one
    more the first time, in which kernels are compiled; on a GPU about five.
    """
    import json
    from dataclasses import asdict

    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler warns where there is no GPU
    import torch

    from tdformer.bench.conditions import conditions
    from tdformer.bench.contenders import CONTENDERS, Setting, network
    from tdformer.bench.step import measure
    from tdformer.distributed.context import init_distributed

    on_gpu = torch.cuda.is_available()
    if device == "cuda" and not on_gpu:
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to measure the CPU")
    if unknown := set(model or ()) - set(CONTENDERS):
        raise UserError(f"--model {sorted(unknown)[0]}: the contenders are {', '.join(CONTENDERS)}")
    size = image_size or (224 if on_gpu else 96)
    config = network(embed_dims or (768 if on_gpu else 384), size, time_steps, segments)
    names = [name for name in CONTENDERS if not model or name in model]
    with init_distributed() as context, progress("measuring", len(names) * (rounds + 2)) as advance:
        setting = Setting(config, size, precision or ("bf16" if on_gpu else "fp32"), kernels, context)
        found = conditions(context.device) | {"rounds": rounds, "image_size": size, "precision": setting.precision, "kernels": kernels}
        found |= {"embed_dims": config.backbone.embed_dims, "time_steps": time_steps, "segments": segments}
        ceilings, measured = measure(setting, names, batch or (None if on_gpu else 4), rounds, advance)
    rows = [asdict(row) for row in measured]
    if as_json:
        typer.echo(json.dumps({"conditions": found, "ceilings": asdict(ceilings), "rows": rows}))
        return
    shares = [{"share_of_time": row["model"], **row.pop("shares")} for row in rows]
    for name, table in {"conditions": [found], "ceilings": [asdict(ceilings)], "rows": rows, "shares": shares}.items():
        show_rows(table, False, name)
        typer.echo()


@bench_app.command("loader")
def bench_loader(
    images: Annotated[int, typer.Option(min=1, help="How many to generate; a round loads them once with each pipeline.")] = 2000,
    folder: Annotated[
        Path | None, typer.Option(help="Where they are kept for the next time, about 1 MB each.", show_default="a temporary one")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Loader processes.", show_default="all cores")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are taken over so many.")] = 5,
    as_json: Json = False,
) -> None:
    """Images per second of WebDataset and FFCV, beside torchvision's ImageFolder and FFCV's own Loader, with the same transforms.

    On photographs of ImageNet's usual sizes, from the page cache, in turns. Then: seconds to the first batch of a start and of
    a resume in the middle of an epoch, also at ImageNet's number of samples. Needs the extras `bench` and `ffcv`.
    """
    import json
    from contextlib import nullcontext
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from tdformer.bench.loader import PIPELINES, STORAGE, Load, measure, prepare_sets
    from tdformer.bench.startup import STARTS, measure_starts

    if images < batch:
        raise UserError(f"--images {images} do not fill one batch of {batch}; generate more, or lower --batch")
    cores = os.cpu_count() or 1
    load = Load(batch, workers or cores, images // batch)
    conditions: dict[str, object] = {"images": images, "workers": load.workers, "batch": batch, "rounds": rounds, "cores": cores}
    conditions["load_average"] = os.getloadavg()[0]
    with nullcontext(folder) if folder else TemporaryDirectory() as where, TemporaryDirectory() as large:
        with progress("generating", images * (1 + len(STORAGE))) as advance:
            sets = prepare_sets(Path(where), images, processes=cores, progress=advance)
        with progress("measuring", rounds * len(PIPELINES)) as advance:
            rows = [asdict(row) for row in measure(sets, load, rounds, PIPELINES, progress=advance)]
        with progress("starting", rounds * STARTS) as advance:
            starts = [asdict(start) for start in measure_starts(sets, load, rounds, Path(large), progress=advance)]
    if as_json:
        typer.echo(json.dumps({"conditions": conditions, "rows": rows, "starts": starts}))
        return
    for name, table in {"conditions": [conditions], "rows": rows, "starts": starts}.items():
        show_rows(table, False, name)
        typer.echo()


@bench_app.command("watching")
def bench_watching(
    config: Config,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=2, help="Each is training.log_every steps without and as many with telemetry.")] = 20,
    as_json: Json = False,
) -> None:
    """What the metrics of a run cost (times of a step's parts, firing rates, utilisation), as a share of the step; without data."""
    from dataclasses import asdict

    from tdformer.bench.telemetry_overhead import measure
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.context import init_distributed

    run = load_config(config, overrides or [])
    with init_distributed() as context, progress("measuring", rounds) as advance:
        rows = [asdict(row) for row in measure(run, rounds, context, advance)]
    show_rows(rows, as_json, "rows")


@bench_app.command("together")
def bench_together(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, with the first few, which are not measured.")] = 60,
    images: Annotated[
        int | None, typer.Option(min=1, help="Train on so many generated images of ImageNet's sizes.", show_default="the run's own data")
    ] = None,
    stored: Annotated[Literal["wds", "ffcv"] | None, typer.Option("--format", help="Of the generated set.", show_default="wds")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where it is kept for the next time, about 0.3 MB an image.", show_default="a temporary one")
    ] = None,
    as_json: Json = False,
) -> None:
    """Training steps of a run with its loader processes, and the share of the step for which they wait for data. Keeps nothing of the run.

    The weights are random; nothing is evaluated or saved. For several processes start it under torchrun. --images needs the extra `bench`.
    """
    import json
    import multiprocessing
    from contextlib import nullcontext
    from dataclasses import asdict
    from functools import partial
    from tempfile import TemporaryDirectory

    from tdformer.bench.conditions import conditions
    from tdformer.bench.end_to_end import check_steps, measure, warm_up, with_photographs
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.context import init_distributed

    if images is None and (stored or folder):
        raise UserError("--format and --folder are those of a generated set: give --images too, or leave them out")
    cores = os.cpu_count() or 1
    with init_distributed() as context, nullcontext(folder) if folder else TemporaryDirectory() as where:
        run = context.broadcast(context.on_all_ranks(lambda: load_config(config, overrides or [])))
        context.on_all_ranks(lambda: check_steps(run, steps, context.world_size))
        if images is not None:
            multiprocessing.set_forkserver_preload(
                ["data_pipelines.loading.micro_batches"]
            )  # `prepare` starts the helper that is the loaders' too
            with progress("generating", 2 * images) as advance:
                generate = partial(with_photographs, run, Path(where), images, stored or "wds", processes=cores, progress=advance)
                run = context.broadcast(context.on_all_ranks(lambda: generate() if context.is_rank0 else None))
        found = conditions(context.device) | {"processes": context.world_size, "images": images, "image_size": run.data.image_size}
        found |= {key: getattr(run.training, key) for key in ("global_batch", "micro_batch", "precision", "kernels", "recompute")}
        found |= {"steps": steps, "steps_left_out": warm_up(run, context.world_size)}
        row = measure(run, steps, context)
    if row is None:
        return
    if as_json:
        typer.echo(json.dumps({"conditions": found, "rows": [asdict(row)]}))
        return
    for name, table in {"conditions": [found], "rows": [asdict(row)]}.items():
        show_rows(table, False, name)
        typer.echo()
