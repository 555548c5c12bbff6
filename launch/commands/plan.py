"""`tdformer plan`: estimate what a run needs per GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Config, Json, Overrides

if TYPE_CHECKING:
    from tdformer.config import RunConfig
    from tdformer.estimate.plan import Plan
    from tdformer.estimate.traffic import Machines


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[str, typer.Option(help="The number of GPUs over all machines, or several numbers to compare: 8,16,64.")] = "1",
    gpus_per_node: Annotated[int, typer.Option(min=1, help="The GPUs of one machine.")] = 8,
    images_per_s: Annotated[
        float | None, typer.Option(min=1e-9, max=1e9, help="The measured speed of one GPU with this micro-batch and recompute policy.")
    ] = None,
    gbit_per_s: Annotated[
        float, typer.Option(min=1e-9, max=1e9, help="What a machine sends to the others, all its GPUs together.")
    ] = 100.0,
    gbit_per_s_inside: Annotated[float, typer.Option(min=1e-9, max=1e9, help="What a GPU can send to the others of its machine.")] = 1600.0,
    as_json: Json = False,
) -> None:
    """Estimate memory per GPU, communication per step, and with --images-per-s the length of the run. No GPU is needed."""
    from tdformer.config.yaml_io import load_config
    from tdformer.estimate.plan import plan as make_plan
    from tdformer.estimate.traffic import Machines

    loaded = load_config(config, overrides or [])
    choices = [Machines(number, gpus_per_node, gbit_per_s, gbit_per_s_inside) for number in _numbers(gpus)]
    if len(choices) > 1:
        _compare(loaded, choices, images_per_s, as_json)
        return
    result = make_plan(loaded, choices[0], images_per_s)
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    else:
        _show(result, choices[0])


def _numbers(gpus: str) -> list[int]:
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in gpus.split(",")]
    if not all(0 < number <= 1_000_000 for number in numbers):
        raise UserError(f"--gpus takes a number of GPUs, or several with commas between them, such as 8,16,64; got {gpus!r}")
    return numbers


def _as_json(plan: Plan) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(plan), "total_memory_bytes": plan.total_memory_bytes}


def _compare(config: RunConfig, choices: list[Machines], images_per_s: float | None, as_json: bool) -> None:
    """Show a row for each number of GPUs. Those over which the global batch does not divide are told below."""
    from launch.output.tables import show_rows
    from tdformer.estimate.plan import network_size
    from tdformer.estimate.plan import plan as make_plan

    size, plans, refused = network_size(config), [], []
    for machines in choices:
        try:
            plans.append(make_plan(config, machines, images_per_s, size))
        except UserError as error:
            refused.append({"gpus": machines.gpus, "error": str(error)})
    if not plans:
        raise UserError("\n".join(f"{one['gpus']} GPUs: {one['error']}" for one in refused))
    if as_json:
        typer.echo(json.dumps({"plans": [_as_json(plan) for plan in plans], "refused": refused}))
        return
    show_rows([_row(plan, images_per_s) for plan in plans], False, "plans")
    for one in refused:
        typer.echo(f"{one['gpus']} GPUs: {one['error']}")


def _row(plan: Plan, images_per_s: float | None) -> dict[str, object]:
    row: dict[str, object] = {"GPUs": plan.gpus, "nodes": plan.nodes, "accumulation": plan.accumulation, "reduction": plan.reduction}
    row |= {"memory": _gigabytes(plan.total_memory_bytes), "node sends": _gigabytes(sum(plan.network_bytes.values()))}
    if (speed := plan.speed) is None or images_per_s is None:
        return row
    row |= {"step": f"{speed.step_s:.3f} s", "exposed": f"{speed.communication_share:.1%}", "images/s": round(speed.images_per_s)}
    row["of ideal"] = f"{speed.images_per_s / (plan.gpus * images_per_s):.0%}"
    return row if speed.days is None else {**row, "days": f"{speed.days:.3g}"}


def _show(plan: Plan, machines: Machines) -> None:
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
            "nodes": str(plan.nodes),
            "reduction of gradients": plan.reduction,
        },
    )
    memory = {name: size for name, size in plan.memory_bytes.items() if size} | {"total": plan.total_memory_bytes}
    section("memory per GPU", {name: _gigabytes(size) for name, size in memory.items()})
    for title, of_purposes in (("sent per GPU and step", plan.communication_bytes), ("sent to other nodes per step", plan.network_bytes)):
        if sent := {name: _gigabytes(size) for name, size in of_purposes.items() if size}:
            section(title, sent)
    if speed := plan.speed:
        link = f"{machines.gbit_per_s:g} Gbit/s" if plan.nodes > 1 else f"{machines.gbit_per_s_inside:g} Gbit/s in the node"
        rows = {
            f"step, at {link}": f"{speed.step_s:.3f} s",
            "of it communication (not hidden)": f"{speed.communication_share:.1%}",
            "communication behind computing": f"{speed.hidden_s:.3f} s",
            "images/s": f"{speed.images_per_s:.0f}",
            "days, without evaluations": "data.train_samples is not set" if speed.days is None else f"{speed.days:.2f}",
        }
        section("speed", rows)
    Console(soft_wrap=True, highlight=False).print(table)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f} GB"
