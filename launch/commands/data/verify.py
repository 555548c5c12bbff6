"""`tdformer data verify`: search a data set for damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json, PatienceMinutes, Workers
from launch.output.progress import progress


def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of one data set, which holds manifest.json.")],
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare the SHA-256 of every shard with the manifest.")] = False,
    all_images: Annotated[bool, typer.Option("--all-images", help="Decode every image instead of a sample of a thousand.")] = False,
    patience: PatienceMinutes = 2.0,
    processes: Workers = None,
    as_json: Json = False,
) -> None:
    """Check presence, size and samples of every shard, and decode images.

    The exit code is 2 if anything is damaged, and 75 if something cannot be read now.
    """
    import json

    from data_pipelines.formats.manifest_reader import read_manifest
    from data_pipelines.prepare.class_counts import count_classes
    from data_pipelines.prepare.verify_dataset import DECODED_SAMPLES, VerifyOptions, verify_dataset
    from data_pipelines.storage.patience import Patience, patiently

    options = VerifyOptions(hashes, all_images, Patience(60 * patience))
    total = patiently(lambda: read_manifest(folder), options.patience).samples
    with progress(f"{folder}", 2 * total) as advance:
        damage = verify_dataset(folder, options, processes=processes or os.cpu_count() or 1, progress=advance)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "samples": total, "damage": damage}))
    else:
        for line in damage:
            typer.echo(line, err=True)
    if damage:
        raise UserError(f"{folder} is damaged in {len(damage)} place(s), listed above.")
    if not as_json:
        looked_at = "all" if all_images or total <= DECODED_SAMPLES else f"{DECODED_SAMPLES}"
        bytes_too = "hashes compared" if hashes else "hashes not compared (--hashes)"
        typer.echo(f"{folder}: {total} samples, no damage found; {looked_at} images decoded, {bytes_too}")
        if (counts := count_classes(folder)) and counts.empty:
            typer.echo(f"classes without a sample: {', '.join(counts.empty)}")
