"""`tdformer data corrupt`: write a suite of corrupted copies of a validation set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.options import Json, Workers
from launch.output.progress import progress
from launch.output.tables import show_rows


def corrupt(
    data: Annotated[Path, typer.Argument(help="A prepared data set, such as data/imagenet/val.")],
    out: Annotated[Path, typer.Argument(help="The folder of the suite: its data sets are OUT/gaussian_noise-1, …")],
    kinds: Annotated[str, typer.Option(help="The corruptions, separated by commas.", show_default="all 19")] = "",
    severities: Annotated[str, typer.Option(help="The severities, such as 3, 1,3 or 1-5.")] = "1-5",
    seed: Annotated[int, typer.Option(min=0, help="The seed of the corruptions.")] = 0,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Take so many images, at equal distances in the set.", show_default="all")
    ] = None,
    processes: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write corrupted copies of a validation set, as CIFAR-10-C and ImageNet-C are of theirs. `evaluate --suite` measures on them.

    The pixels depend on the seed and the sample alone, not on the number of processes. After a kill, the same command goes on.
    """
    from data_pipelines.errors import UserError
    from data_pipelines.formats.corruption_kinds import KINDS
    from data_pipelines.loading.open_dataset import open_dataset
    from data_pipelines.prepare.corrupted_source import CorruptedSource
    from data_pipelines.prepare.options import PrepareOptions
    from data_pipelines.prepare.prepare_dataset import prepare_dataset, preview_preparation

    if out.resolve().is_relative_to(data.resolve()) or data.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} and {data} lie within each other; choose another folder for the suite.")
    opened, options = open_dataset(data), PrepareOptions()
    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()] or KINDS
    sources = {
        out / f"{kind}-{severity}": CorruptedSource(opened, kind, severity, seed, samples)
        for kind in chosen
        for severity in _numbers(severities)
    }
    rows: list[dict[str, object]] = []
    if dry_run:
        rows = [{"data_set": str(path), "state": preview_preparation(source, path, options)} for path, source in sources.items()]
        show_rows(rows, as_json, "data_sets")
        return
    with progress(f"{out}", sum(map(len, sources.values()))) as advance:
        for path, source in sources.items():
            try:
                done = prepare_dataset(source, path, options, processes=processes or os.cpu_count() or 1, progress=advance)
            except KeyboardInterrupt:
                typer.echo(f"stopped; finished data sets of {out} are kept, and the same command goes on", err=True)
                raise typer.Exit(130) from None
            rows.append({"data_set": str(path), "samples": done.samples, "state": "already there" if done.already_there else "written"})
    show_rows(rows, as_json, "data_sets")
    if not as_json:
        typer.echo(f"evaluate on it: tdformer evaluate RUN --suite {out}")


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 1,3 or 1-5. Raises UserError."""
    from data_pipelines.errors import UserError

    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        known = tuple("12345")
        if first not in known or (last or first) not in known or first > (last or first):
            raise UserError(f"--severities {text}: give numbers from 1 to 5, such as 3, 1,3 or 1-5.")
        numbers += range(int(first), int(last or first) + 1)
    return sorted(set(numbers))
