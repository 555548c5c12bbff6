"""`tdformer bench scaling`: what communication adds to a training step, on the ranks of a cluster or on emulated nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.progress import progress
from launch.output.tables import show_tables

if TYPE_CHECKING:
    from tdformer.config import RunConfig

Scaling = Literal["weak", "strong"]


def bench_scaling(
    embed_dims: Annotated[
        int | None, typer.Option(min=64, help="The number of channels of the last stage.", show_default="768; on a CPU 256")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="The side of an image in pixels.", show_default="224; on a CPU 32")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per rank; with --scaling strong, over all ranks.", show_default="64; on a CPU 2")
    ] = None,
    scaling: Annotated[Scaling, typer.Option(help="weak: each rank has the same batch. strong: all ranks together have.")] = "weak",
    model: Annotated[
        list[str] | None, typer.Option(help="The name of one candidate; can be repeated.", show_default="all", metavar="NAME")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds; each candidate is measured once in each.")] = 15,
    emulate_nodes: Annotated[
        str | None, typer.Option(help="Emulate so many nodes on this machine, one process each; several numbers such as 2,4. Needs root.")
    ] = None,
    mbit_per_s: Annotated[float, typer.Option(min=1, help="With --emulate-nodes: what a node can send.")] = 200.0,
    forward_s: Annotated[float, typer.Option(min=0, help="Seconds of an emulated accelerator in each forward pass.")] = 0.0,
    backward_s: Annotated[float, typer.Option(min=0, help="Seconds of an emulated accelerator in each backward pass.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="A folder for scaling.json and scaling.svg. What it holds of other numbers of ranks is kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure training steps of this project, plain DeepSpeed and torch's DDP, beside processes that send nothing.

    Start it under torchrun or srun on the nodes of a cluster, or with --emulate-nodes on one machine. Candidates: ddp, deepspeed-N,
    exact-N and fast-N for ZeRO stage N. They take turns; medians over the rounds are given. Emulated nodes have links of limited speed,
    and an emulated accelerator that leaves the CPU free: --forward-s 0.5 --backward-s 1.5.
    """
    options = ["--scaling", scaling, "--rounds", str(rounds), "--forward-s", str(forward_s), "--backward-s", str(backward_s)]
    for name, value in {"--embed-dims": embed_dims, "--image-size": image_size, "--batch": batch}.items():
        options += [name, str(value)] if value is not None else []
    for name in model or ():
        options += ["--model", name]
    _check(model)
    if emulate_nodes:
        results = [_on_emulated_nodes(count, mbit_per_s, options) for count in _numbers(emulate_nodes)]
    else:
        found = _measure_here(embed_dims, image_size, batch, scaling, model, rounds, forward_s, backward_s)
        if found is None:
            return
        results = [found]
    if out:
        _keep(results, out)
    if as_json:
        typer.echo(json.dumps({"results": results}))
        return
    for result in results:
        show_tables({"conditions": [result["conditions"]], "rows": result["rows"]})
    if out:
        typer.echo(f"picture  {out / 'scaling.svg'}")


def _check(model: Sequence[str] | None) -> None:
    from tdformer.bench.scaling_names import CANDIDATES

    if unknown := set(model or ()) - set(CANDIDATES):
        raise UserError(f"--model {sorted(unknown)[0]}: the candidates are {', '.join(CANDIDATES)}")


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise UserError(f"--emulate-nodes takes numbers from 1 to 64 with commas between them, such as 2,4; got {text!r}")
    return [int(part) for part in parts]


def _measure_here(
    embed_dims: int | None,
    image_size: int | None,
    batch: int | None,
    scaling: Scaling,
    model: Sequence[str] | None,
    rounds: int,
    forward_s: float,
    backward_s: float,
) -> dict[str, Any] | None:
    """Measure on the ranks of this process. Return the result on rank 0, and None elsewhere."""
    import os
    import socket
    from dataclasses import asdict

    from launch.emulated_nodes import EMULATED, INTERFACE
    from tdformer.bench.conditions import conditions
    from tdformer.bench.scaling import WARM_UP, measure
    from tdformer.bench.scaling_candidates import ScalingSetting
    from tdformer.bench.scaling_names import ALONE, CANDIDATES
    from tdformer.distributed.context import init_distributed

    with init_distributed() as context:
        is_emulated = EMULATED in os.environ
        on_gpu = context.device.type == "cuda"
        images = batch or (64 if on_gpu else 2)
        if scaling == "strong" and images % context.world_size:
            raise UserError(f"--batch {images} does not divide over {context.world_size} ranks; give a multiple of them.")
        micro_batch = images // context.world_size if scaling == "strong" else images
        config = _config(embed_dims or (768 if on_gpu else 256), image_size or (224 if on_gpu else 32), micro_batch, on_gpu)
        names = [name for name in CANDIDATES if not model or name in model]
        nodes = context.world_size if is_emulated else len(set(context.all_gather(socket.gethostname())))
        setting = ScalingSetting(config, context, forward_s, backward_s)
        with progress("measuring", len({ALONE, *names}) * (rounds + WARM_UP)) as advance:
            rows = measure(names, setting, nodes, rounds, INTERFACE if is_emulated else None, advance)
        if not context.is_rank0:
            return None
        found = conditions(context.device) | {"rounds": rounds, "scaling": scaling, "image_size": config.data.image_size}
        found |= {"embed_dims": config.model.backbone.embed_dims, "forward_s": forward_s, "backward_s": backward_s, "mbit_per_s": None}
        return {"conditions": found, "rows": [asdict(row) for row in rows]}


def _config(embed_dims: int, image_size: int, micro_batch: int, on_gpu: bool) -> RunConfig:
    """Return HST-10 with this many channels; on a CPU a short one, whose time is that of the emulated accelerator."""
    from data_pipelines.config import DataConfig
    from tdformer.bench.candidates import network
    from tdformer.config import RunConfig, TrainingConfig

    model = network(embed_dims, image_size, time_steps=4, segments=2)
    if not on_gpu:
        model = model.model_copy(update={"backbone": model.backbone.model_copy(update={"depths": (1, 1, 4)})})
    training = TrainingConfig(global_batch=micro_batch, micro_batch=micro_batch, precision="bf16" if on_gpu else "fp32")
    return RunConfig(name="scaling", data=DataConfig(train="none", val="none", image_size=image_size), model=model, training=training)


def _on_emulated_nodes(count: int, mbit_per_s: float, options: Sequence[str]) -> dict[str, Any]:
    """Run this command on emulated nodes. Return the result of rank 0."""
    from launch.emulated_nodes import emulated_nodes, environment_of, start

    command = [sys.executable, "-m", "launch", "bench", "scaling", *options, "--json"]
    with emulated_nodes(count, mbit_per_s) as nodes:
        processes = [start(node, command, environment_of(rank, count), subprocess.PIPE) for rank, node in enumerate(nodes)]
        try:
            printed, *_ = [process.communicate()[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    if code := next((process.returncode for process in processes if process.returncode), 0):
        raise UserError(f"a process on an emulated node ended with exit code {code}; what it said stands above.")
    result = json.loads(printed)["results"][0]
    result["conditions"]["mbit_per_s"] = mbit_per_s
    return result


def _keep(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write results beside those that the folder holds of other settings, and draw all of them."""
    from tdformer.bench.scaling_picture import keep

    try:
        keep(results, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another --out.") from None
