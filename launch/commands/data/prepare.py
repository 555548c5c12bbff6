"""`tdformer data prepare`: write data sets from images as they are published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json, PatienceMinutes, Workers
from launch.output.progress import progress
from launch.output.tables import show_rows

if TYPE_CHECKING:
    from data_pipelines.prepare.options import Encoding, PrepareOptions
    from data_pipelines.sources.base import Source


EMPTY = "empty_classes"
"""The column with the names of classes without a sample. JSON has it; for people there is a line instead."""


def prepare(
    source: Annotated[str, typer.Argument(help="A folder, an archive or a list of images (see --layout), or the word mnist.")],
    out: Annotated[Path, typer.Argument(help="The folder to write to: the data sets are OUT/train, OUT/val, …")],
    layout: Annotated[str, typer.Option(help="The layout of SOURCE; auto detects it, and an unknown name lists all.")] = "auto",
    only: Annotated[list[str] | None, typer.Option(help="Write this data set alone, such as val; can be repeated.")] = None,
    format: Annotated[Literal["wds", "ffcv"], typer.Option(help="Write WebDataset tar shards, or one FFCV file.")] = "wds",
    samples_per_shard: Annotated[
        int, typer.Option(min=1, help="Samples per shard; also the most that a kill loses, and the block size of shuffle: blocks.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the order in which samples are stored.")] = 0,
    short_side: Annotated[int | None, typer.Option(min=16, help="Reduce larger images to this short side in pixels.")] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="The JPEG quality; for wds it re-encodes all images instead of keeping their bytes.")
    ] = None,
    mode: Annotated[
        Literal["raw", "jpg", "proportion"] | None,
        typer.Option(help="For ffcv: store raw pixels, JPEG, or a proportion as JPEG.", show_default="proportion"),
    ] = None,
    jpeg_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="For ffcv in mode proportion: the share of JPEGs.", show_default="0.5")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(min=16, max=16384, help="For ffcv: reduce larger images to this long side in pixels.")
    ] = None,
    on_bad_image: Annotated[
        Literal["leave-out", "stop"], typer.Option(help="List files that cannot be decoded in left_out.tsv, or stop at the first.")
    ] = "leave-out",
    patience: PatienceMinutes = 2.0,
    time_steps: Annotated[int, typer.Option(min=1, help="For event data: frames per sample.")] = 16,
    processes: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write data sets for training from images as they are published.

    After a kill at any moment, the same command continues where it was. Existing files are never overwritten. The exit code is 75 if
    the source cannot be read now.
    """
    from data_pipelines.prepare.options import PrepareOptions
    from data_pipelines.sources.layouts import open_splits
    from data_pipelines.storage.patience import Patience, patiently

    encoding = _encoding(format, short_side, quality, mode, jpeg_share, max_side)
    waiting = Patience(60 * patience)
    options = PrepareOptions(encoding, samples_per_shard, seed, stop_at_bad=on_bad_image == "stop", patience=waiting)
    _check_apart(Path(source), out)
    splits = patiently(lambda: open_splits(source, layout, time_steps), waiting)
    if unknown := sorted(set(only or []) - splits.keys()):
        raise UserError(f"--only {unknown[0]}: {source} holds {', '.join(splits)}.")
    chosen = {name: samples for name, samples in splits.items() if not only or name in only}
    if dry_run:
        show_rows([_planned(samples, out / name, options) for name, samples in chosen.items()], as_json, "data_sets")
        return
    rows = [_write(samples, out / name, options, processes or os.cpu_count() or 1) for name, samples in chosen.items()]
    if as_json:
        show_rows(rows, as_json, "data_sets")
        return
    show_rows([{name: value for name, value in row.items() if name != EMPTY} for row in rows], as_json, "data_sets")
    _advise(rows, splits, out)


def _described(samples: Source, folder: Path) -> dict[str, object]:
    return {"data_set": str(folder), "classes": len(samples.classes), "other_files": samples.ignored_files}


def _planned(samples: Source, folder: Path, options: PrepareOptions) -> dict[str, object]:
    """Return the row of a data set that would be written."""
    from data_pipelines.prepare.prepare_dataset import preview_preparation

    state = preview_preparation(samples, folder, options)
    found = {"files": len(samples), "bad_images": len(samples.left_out)}
    return {**_described(samples, folder), **found, "parts": len(options.parts(len(samples))), "state": state}


def _write(samples: Source, folder: Path, options: PrepareOptions, processes: int) -> dict[str, object]:
    """Write a data set, and return its row. Exits with code 130 after Ctrl-C."""
    from data_pipelines.prepare.class_counts import count_classes
    from data_pipelines.prepare.prepare_dataset import prepare_dataset

    with progress(f"{folder}", len(samples)) as advance:
        try:
            done = prepare_dataset(samples, folder, options, processes=processes, progress=advance)
        except KeyboardInterrupt:
            typer.echo(f"stopped; finished parts of {folder} are kept, and the same command goes on", err=True)
            raise typer.Exit(130) from None
    state = "already there" if done.already_there else f"written, {done.resumed} of them before" if done.resumed else "written"
    counts = count_classes(folder)
    of_classes = counts.described() if counts else {"samples_per_class": "not known"}
    return {**_described(samples, folder), "samples": done.samples, "bad_images": done.left_out, "state": state, **of_classes}


def _advise(rows: list[dict[str, object]], splits: Mapping[str, Source], out: Path) -> None:
    """Print which classes are empty, where bad images are listed, and how to train on the data sets."""
    from data_pipelines.prepare.journal import LEFT_OUT

    for row in rows:
        if isinstance(empty := row.get(EMPTY), list):
            typer.echo(f"classes without a sample in {row['data_set']}: {', '.join(empty)}")
        if row["bad_images"]:
            typer.echo(f"bad images, with reasons: {row['data_set']}/{LEFT_OUT}")
    if {"train", "val"} <= splits.keys():
        classes = len(splits["train"].classes)
        typer.echo(f"train on it: tdformer train CONFIG data.train={out / 'train'} data.val={out / 'val'} model.num_classes={classes}")


def _check_apart(source: Path, out: Path) -> None:
    """Refuse an output folder within the source folder. The user could follow advice to remove it, and lose the source."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {source}, which it would be made from; choose another folder to write to.")


def _encoding(
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
