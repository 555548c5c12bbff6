"""`tdformer bench step`: the speed of training steps, beside spikingjelly's QKFormer and the ceilings of the device."""

from __future__ import annotations

import json
import os
from typing import Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json
from launch.output.progress import progress
from launch.output.tables import show_tables

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["auto", "fused", "plain"]


def bench_step(
    embed_dims: Annotated[
        int | None, typer.Option(min=64, help="The number of channels of the last stage.", show_default="768; on a CPU 384")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="The side of an image in pixels.", show_default="224; on a CPU 96")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default="the fastest of each network; on a CPU 4")
    ] = None,
    time_steps: Annotated[int, typer.Option(min=1, help="The number of time steps T.")] = 4,
    segments: Annotated[int, typer.Option(min=1, help="The number of segments of the networks with feedback.")] = 2,
    precision: Annotated[
        Precision | None, typer.Option(help="The precision; bf16 and fp16 use autocast.", show_default="bf16; on a CPU fp32")
    ] = None,
    kernels: Annotated[Kernels, typer.Option(help="The kernels, as in training.kernels.")] = "fused",
    device: Annotated[Device | None, typer.Option(help="The device to measure.", show_default="the GPU, if there is one")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="The name of one candidate; can be repeated.", show_default="all", metavar="NAME")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds; each candidate is measured once in each.")] = 15,
    as_json: Json = False,
) -> None:
    """Measure training steps of QKFormer, TDFormer and spikingjelly's QKFormer, and the highest speeds of the device.

    Candidates: backbone, tdformer (feedback in all blocks of the last stage), spikingjelly-qkformer (the reference), tdformer-recompute
    (policy block_segment), tdformer-engine (as in `tdformer train`: DeepSpeed, exact sums), tdformer-engine-fast (the same with
    training.reduction: fast). They take turns in one process, and medians over the rounds are given. Images are random. Two CPU cores
    take two minutes, and one more minute to compile kernels the first time. A GPU takes about five minutes.
    """
    from dataclasses import asdict

    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Without it, torch's profiler warns where there is no GPU.
    import torch

    from tdformer.bench.candidates import CANDIDATES, Setting, network
    from tdformer.bench.conditions import conditions
    from tdformer.bench.step import measure
    from tdformer.distributed.context import init_distributed

    on_gpu = torch.cuda.is_available()
    if device == "cuda" and not on_gpu:
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to measure the CPU")
    if unknown := set(model or ()) - set(CANDIDATES):
        raise UserError(f"--model {sorted(unknown)[0]}: the candidates are {', '.join(CANDIDATES)}")
    size = image_size or (224 if on_gpu else 96)
    config = network(embed_dims or (768 if on_gpu else 384), size, time_steps, segments)
    names = [name for name in CANDIDATES if not model or name in model]
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
    show_tables({"conditions": [found], "ceilings": [asdict(ceilings)], "rows": rows, "shares": shares})
