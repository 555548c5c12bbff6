"""`tdformer plan`: estimate what a run needs per GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.options import Config, Json, Overrides

if TYPE_CHECKING:
    from tdformer.estimate.plan import Plan


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="The number of GPUs over all machines.")] = 1,
    images_per_s: Annotated[
        float | None, typer.Option(min=1e-9, max=1e9, help="The measured speed of one GPU with this micro-batch and recompute policy.")
    ] = None,
    gbit_per_s: Annotated[float, typer.Option(min=1e-9, max=1e9, help="The bandwidth of the slowest link between GPUs.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Estimate memory per GPU, communication per step, and with --images-per-s the length of the run. No GPU is needed."""
    from tdformer.config.yaml_io import load_config
    from tdformer.estimate.plan import plan as make_plan

    result = make_plan(load_config(config, overrides or []), gpus, images_per_s, gbit_per_s)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps({**asdict(result), "total_memory_bytes": result.total_memory_bytes}))
    else:
        _show(result, gbit_per_s)


def _show(plan: Plan, gbit_per_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")

    def section(title: str, rows: dict[str, str]) -> None:
        table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows.items():
            table.add_row(f"  {name.replace('_', ' ')}", value)

    section(
        "batches",
        {
            "global batch": f"{plan.global_batch} = {plan.micro_batch} x {plan.gpus} GPUs x {plan.accumulation} accumulation",
            "fits on so many GPUs": ", ".join(map(str, plan.fitting_gpus)),
            "reduction of gradients": plan.reduction,
        },
    )
    memory = {name: size for name, size in plan.memory_bytes.items() if size} | {"total": plan.total_memory_bytes}
    section("memory per GPU", {name: _gigabytes(size) for name, size in memory.items()})
    sent = {name: size for name, size in plan.communication_bytes.items() if size}
    section("sent per GPU and step", {name: _gigabytes(size) for name, size in sent.items()} or {"nothing": ""})
    if speed := plan.speed:
        rows = {
            f"step, at {gbit_per_s:g} Gbit/s": f"{speed.step_s:.3f} s",
            "of it communication (not hidden)": f"{speed.communication_share:.1%}",
            "communication behind computing": f"{speed.hidden_s:.3f} s",
            "images/s": f"{speed.images_per_s:.0f}",
            "days, without evaluations": "data.train_samples is not set" if speed.days is None else f"{speed.days:.2f}",
        }
        section("speed", rows)
    Console(soft_wrap=True, highlight=False).print(table)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f} GB"
