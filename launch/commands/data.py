"""`tdformer data`: write, index and check data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launch.options import Json, plain_typer
from launch.output import progress, show, show_rows

if TYPE_CHECKING:
    from data_pipelines.prepare.options import Encoding

data_app = plain_typer(help="Write, index and check data sets.")

Workers = Annotated[int | None, typer.Option("--processes", min=1, help="Processes to share the work.", show_default="all cores")]


@data_app.command("prepare")
def prepare(
    source: Annotated[str, typer.Argument(help="A folder, archive or list (see --layout), or the word mnist.")],
    out: Annotated[Path, typer.Argument(help="Where the data sets are written: OUT/train, OUT/val, …")],
    layout: Annotated[str, typer.Option(help="How SOURCE is laid out; auto looks. An unknown one names them all.")] = "auto",
    only: Annotated[list[str] | None, typer.Option(help="Write this data set alone, for example val. May be given again.")] = None,
    format: Annotated[Literal["wds", "ffcv"], typer.Option(help="WebDataset tar shards, or one FFCV file.")] = "wds",
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Also what a kill may lose, and a block of shuffle: blocks.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which samples are stored.")] = 0,
    short_side: Annotated[int | None, typer.Option(min=16, help="Reduce larger images to this short side, in pixels.")] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of JPEGs. wds: encode all images again; without it their bytes are kept.")
    ] = None,
    mode: Annotated[
        Literal["raw", "jpg", "proportion"] | None, typer.Option(help="ffcv: pixels, JPEG, or a share as JPEG.", show_default="proportion")
    ] = None,
    jpeg_share: Annotated[float | None, typer.Option(min=0, max=1, help="ffcv, for proportion.", show_default="0.5")] = None,
    max_side: Annotated[int | None, typer.Option(min=16, max=16384, help="ffcv: reduce larger images to this long side, pixels.")] = None,
    on_bad_image: Annotated[
        Literal["leave-out", "stop"], typer.Option(help="Files that are no whole image are listed in left_out.tsv, or end the job.")
    ] = "leave-out",
    time_steps: Annotated[int, typer.Option(min=1, help="Event data: frames per sample.")] = 16,
    processes: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write data sets that training reads, from images as they are published.

    Killed at any moment, the same command goes on where it was. Nothing that is there is overwritten.
    """
    from data_pipelines.prepare.journal import LEFT_OUT
    from data_pipelines.prepare.options import PrepareOptions
    from data_pipelines.prepare.prepare_dataset import prepare_dataset, preview_preparation
    from data_pipelines.sources.layouts import open_splits

    storage = _storage(format, short_side, quality, mode, jpeg_share, max_side)
    plan = PrepareOptions(storage, samples_per_shard, seed, stop_at_bad=on_bad_image == "stop")
    _check_apart(Path(source), out)
    splits = open_splits(source, layout, time_steps)
    if unknown := sorted(set(only or []) - splits.keys()):
        raise UserError(f"--only {unknown[0]}: {source} holds {', '.join(splits)}.")
    rows: list[dict[str, object]] = []
    for name, samples in splits.items():
        if only and name not in only:
            continue
        row: dict[str, object] = {"data_set": str(out / name), "classes": len(samples.classes), "other_files": samples.ignored_files}
        if dry_run:
            state = preview_preparation(samples, out / name, plan)
            rows.append(row | {"files": len(samples), "parts": len(plan.parts(len(samples))), "state": state})
            continue
        with progress(f"{out / name}", len(samples)) as advance:
            try:
                done = prepare_dataset(samples, out / name, plan, processes=processes or os.cpu_count() or 1, progress=advance)
            except KeyboardInterrupt:
                typer.echo(f"stopped; finished parts of {out / name} are kept, and the same command goes on", err=True)
                raise typer.Exit(130) from None
        state = "already there" if done.already_there else f"written, {done.resumed} of them before" if done.resumed else "written"
        rows.append(row | {"samples": done.samples, "bad_images": done.left_out, "state": state})
    show_rows(rows, as_json, "data_sets")
    if as_json or dry_run:
        return
    for row in rows:
        if row["bad_images"]:
            typer.echo(f"bad images, with reasons: {row['data_set']}/{LEFT_OUT}")
    if {"train", "val"} <= splits.keys():
        classes = len(splits["train"].classes)
        typer.echo(f"train on it: tdformer train CONFIG data.train={out / 'train'} data.val={out / 'val'} model.num_classes={classes}")


@data_app.command("index")
def index(
    shards: Annotated[str, typer.Argument(help="A folder of .tar files; 'PATH-OR-URL/train-{0000..1023}.tar', quoted; or a .txt of them.")],
    out: Annotated[Path, typer.Argument(help="A new folder for manifest and index, apart from the shards.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="A text file with the classes' names, one per line from number 0. Without it they are called 0, 1, …"),
    ] = None,
    processes: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which shards would be read, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make WebDataset shards that others wrote ready for training. They are read once, and stay where they are.

    A sample is <key>.jpg, .jpeg or .png, and <key>.cls with its class number. Killed, the same command goes on where it was.
    """
    from data_pipelines.prepare.class_names import read_class_names
    from data_pipelines.prepare.index_shards import index_shards, preview_indexing
    from data_pipelines.prepare.shard_list import find_shards

    found, names = find_shards(shards), None if classes is None else read_class_names(classes)
    count = len(found.names)
    row: dict[str, object] = {"data_set": str(out), "shards": count, "first": found.location(0), "last": found.location(count - 1)}
    if dry_run:
        show(row | {"state": preview_indexing(found, out, names)}, as_json)
        return
    with progress(f"{out}", count) as advance:
        try:
            done = index_shards(found, out, names, processes=processes or os.cpu_count() or 1, progress=advance)
        except KeyboardInterrupt:
            typer.echo(f"stopped; the shards that were read are noted in {out}, and the same command goes on", err=True)
            raise typer.Exit(130) from None
    state = "already there" if done.already_there else f"indexed, {done.resumed} samples of it before" if done.resumed else "indexed"
    show(row | {"samples": done.samples, "classes": done.classes, "state": state}, as_json)
    if not as_json:
        typer.echo(f"train on it: tdformer train CONFIG data.train={out} model.num_classes={done.classes}")


def _check_apart(source: Path, out: Path) -> None:
    """What is written must not lie among the files that it is made from, where the advice to remove it would be harmful."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {source}, which it would be made from; choose another folder to write to.")


def _storage(
    format: Literal["wds", "ffcv"],
    short_side: int | None,
    quality: int | None,
    mode: Literal["raw", "jpg", "proportion"] | None,
    jpeg_share: float | None,
    max_side: int | None,
) -> Encoding:
    from data_pipelines.prepare.options import Encoding

    of_ffcv = {name: value for name, value in (("mode", mode), ("jpeg_share", jpeg_share), ("max_side", max_side)) if value is not None}
    if format != "ffcv" and of_ffcv:
        raise UserError(f"--{min(of_ffcv).replace('_', '-')} is for --format ffcv.")
    if jpeg_share is not None and mode not in (None, "proportion"):
        raise UserError(f"--jpeg-share is for --mode proportion, not {mode}.")
    return Encoding(format, short_side, quality, **of_ffcv)  # type: ignore[arg-type]


@data_app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="One data set: the folder that holds manifest.json.")],
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare every shard's SHA-256 with the manifest.")] = False,
    all_images: Annotated[bool, typer.Option("--all-images", help="Decode every image, not a thousand of them.")] = False,
    processes: Workers = None,
    as_json: Json = False,
) -> None:
    """Check presence, size and samples of every shard, and decode images. Exit code 2 if anything is damaged."""
    import json

    from data_pipelines.formats.manifest_reader import read_manifest
    from data_pipelines.prepare.verify_dataset import DECODED_SAMPLES, VerifyOptions, verify_dataset

    total = read_manifest(folder).samples
    with progress(f"{folder}", 2 * total) as advance:
        damage = verify_dataset(folder, VerifyOptions(hashes, all_images), processes=processes or os.cpu_count() or 1, progress=advance)
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
