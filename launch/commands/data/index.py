"""`tdformer data index`: make WebDataset shards of others ready for training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.options import Json, PatienceMinutes, Workers
from launch.output.progress import progress
from launch.output.tables import show


def index(
    shards: Annotated[str, typer.Argument(help="A folder of .tar files, a quoted 'PATH-OR-URL/train-{0000..1023}.tar', or a .txt list.")],
    out: Annotated[Path, typer.Argument(help="A new folder for manifest and index, outside the folder of the shards.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="A text file with one class name per line, from class 0 on; without it they are called 0, 1, …"),
    ] = None,
    ignore_unused: Annotated[
        bool, typer.Option("--ignore-unused", help="Accept members that look like images and belong to no sample.")
    ] = False,
    patience: PatienceMinutes = 2.0,
    processes: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show which shards would be read, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make WebDataset shards that others wrote ready for training. They are read once, and stay where they are.

    A sample is <key>.jpg, .jpeg or .png, and <key>.cls with its class number. After a kill, the same command continues where it was.
    The exit code is 75 if a shard cannot be read now.
    """
    from data_pipelines.prepare.class_counts import count_classes
    from data_pipelines.prepare.class_names import read_class_names
    from data_pipelines.prepare.index_shards import index_shards, preview_indexing
    from data_pipelines.prepare.shard_list import find_shards
    from data_pipelines.storage.patience import Patience

    found, names = find_shards(shards), None if classes is None else read_class_names(classes)
    count = len(found.names)
    row: dict[str, object] = {"data_set": str(out), "shards": count, "first": found.location(0), "last": found.location(count - 1)}
    if dry_run:
        show(row | {"state": preview_indexing(found, out, names)}, as_json)
        return
    with progress(f"{out}", count) as advance:
        try:
            done = index_shards(
                found,
                out,
                names,
                processes=processes or os.cpu_count() or 1,
                progress=advance,
                patience=Patience(60 * patience),
                ignore_unused=ignore_unused,
            )
        except KeyboardInterrupt:
            typer.echo(f"stopped; the shards that were read are noted in {out}, and the same command goes on", err=True)
            raise typer.Exit(130) from None
    state = "already there" if done.already_there else f"indexed, {done.resumed} samples of it before" if done.resumed else "indexed"
    counts = count_classes(out)
    row |= {"samples": done.samples, "classes": done.classes, "state": state, **(counts.described() if counts else {})}
    if done.unused:
        named = ", ".join(f"{count} {f'.{end}' if end else 'without an extension'}" for end, count in sorted(done.unused.items()))
        row["unused_members"] = done.unused if as_json else named
    show(row, as_json)
    if not as_json:
        typer.echo(f"use it: tdformer train CONFIG data.train={out} (or data.val={out}) model.num_classes={done.classes}")
