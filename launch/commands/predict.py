"""`tdformer predict`: the classes of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import DataError, UserError
from launch.commands.options import Ema, Evaluated, Json, Which
from launch.exit_codes import EXIT_ERROR

if TYPE_CHECKING:
    import torch

    from tdformer.inference.predictor import Prediction, Predictor

STDIN = "-"


def predict(
    trained: Evaluated,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="JPEG or PNG files, folders of them, patterns in quotes, or - for stdin."),
    ],
    top: Annotated[int, typer.Option(min=1, help="The number of classes in an answer.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    maps: Annotated[Path | None, typer.Option(help="A new folder for pictures of where the attention looks in each pass.")] = None,
    which: Which = "best",
    ema: Ema = False,
    as_json: Json = False,
) -> None:
    """Name the classes of images with a trained network, which sees them as evaluation does.

    An image that cannot be read is named, and the others are answered; the exit code is then 2. Event frames are .npy files.
    """
    import tdformer

    files = list(_files(images))
    folder = _new_folder(maps)
    predictor = tdformer.load(trained, which, ema)
    unreadable: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(files), batch):
        names, tensors = _readable(predictor, files[start : start + batch], unreadable)
        for name, answer in zip(names, predictor.answers(tensors, top, batch), strict=True):
            rows.append(_described(name, answer))
            if not as_json:
                typer.echo(_line(rows[-1]))
        if folder and tensors:
            _draw(predictor, names, tensors, folder, first=len(rows) - len(names))
    if as_json:
        typer.echo(json.dumps({"predictions": rows, "unreadable": unreadable}))
    if unreadable:
        typer.echo(f"error: {len(unreadable)} of {len(files)} images could not be read; they are named above", err=True)
        raise typer.Exit(EXIT_ERROR)


def _files(images: Sequence[str]) -> Iterator[str]:
    """Yield what the user named: files, the images in folders and of patterns, and STDIN. Raises UserError for what is not there."""
    from data_pipelines.formats.images import EXTENSION_OF

    for name in images:
        path = Path(name)
        if name == STDIN or path.is_file():
            yield name
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in {*EXTENSION_OF, ".npy"} and file.is_file())
            if not found:
                raise UserError(f"{name} holds no image: no file ends in .jpg, .jpeg, .png or .npy; give another folder, or files.")
            yield from map(str, found)
        elif matching := sorted(_matching(path)):
            yield from matching
        else:
            raise UserError(f"there is no image {name}; give JPEG or PNG files, folders of them, patterns in quotes, or - for stdin.")


def _matching(path: Path) -> list[str]:
    from glob import glob

    return [name for name in glob(str(path), recursive=True) if Path(name).is_file()]


def _new_folder(maps: Path | None) -> Path | None:
    if maps is None:
        return None
    if maps.exists() and (not maps.is_dir() or any(maps.iterdir())):
        raise UserError(f"{maps} exists and is not empty; nothing is overwritten, give another folder to --maps.")
    try:
        maps.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {maps} cannot be made ({error.strerror}); give another one to --maps.") from None
    return maps


def _readable(predictor: Predictor, files: Sequence[str], unreadable: list[dict[str, str]]) -> tuple[list[str], list[torch.Tensor]]:
    """Read images. Those that cannot be read are named on stderr, and added to `unreadable`."""
    names, tensors = [], []
    for name in files:
        try:
            tensors.append(predictor.tensor(sys.stdin.buffer.read() if name == STDIN else name))
            names.append(name)
        except DataError as error:
            typer.echo(f"warning: {error}", err=True)
            unreadable.append({"image": name, "reason": str(error)})
    return names, tensors


def _described(name: str, answer: Prediction) -> dict[str, Any]:
    return {"image": name, "classes": answer.classes, "probabilities": answer.probabilities, "by_segment": answer.by_segment}


def _line(row: dict[str, Any]) -> str:
    answers = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(row["classes"], row["probabilities"], strict=True))
    first, last = row["by_segment"][0], row["by_segment"][-1]
    return f"{row['image']}: {answers}" + (f"   (before feedback: {first})" if first != last else "")


def _draw(predictor: Predictor, names: Sequence[str], tensors: Sequence[torch.Tensor], folder: Path, first: int) -> None:
    from tdformer.analysis.map_pictures import draw_maps

    pictures = draw_maps(predictor, tensors)
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True), start=first):
        stem = "stdin" if name == STDIN else Path(name).stem
        picture.save(folder / f"{number:04d}_{stem}.png")
