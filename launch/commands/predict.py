"""`tdformer predict`: the classes of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import DataError, UserError
from launch.commands.options import Ema, Evaluated, Json, Which
from launch.exit_codes import EXIT_ERROR

if TYPE_CHECKING:
    import torch

    from tdformer.inference.named_images import NamedImage
    from tdformer.inference.predictor import Prediction, Predictor


def predict(
    trained: Evaluated,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="JPEG or PNG files, folders of them, patterns in quotes, a prepared data set, or - for stdin."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="The number of classes in an answer.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of a prepared data set: so many samples, at equal distances.", show_default="all")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="A new folder for pictures of where the attention looks in each pass.")] = None,
    which: Which = "best",
    ema: Ema = False,
    as_json: Json = False,
) -> None:
    """Name the classes of images with a trained network, which sees them as evaluation does.

    An image that cannot be read is named, and the others are answered; the exit code is then 2. Event frames are .npy files.
    """
    import tdformer
    from tdformer.inference.named_images import named_images

    named = list(named_images(images, samples))
    folder = _new_folder(maps)
    predictor = tdformer.load(trained, which, ema)
    unreadable: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(named), batch):
        readable, tensors = _readable(predictor, named[start : start + batch], unreadable)
        for image, answer in zip(readable, predictor.answers(tensors, top, batch), strict=True):
            rows.append(_described(image, answer))
            if not as_json:
                typer.echo(_line(rows[-1]))
        if folder and tensors:
            _draw(predictor, readable, tensors, folder, first=len(rows) - len(readable))
    if as_json:
        typer.echo(json.dumps({"predictions": rows, "unreadable": unreadable}))
    if unreadable:
        typer.echo(f"error: {len(unreadable)} of {len(named)} images could not be read; they are named above", err=True)
        raise typer.Exit(EXIT_ERROR)


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


def _readable(
    predictor: Predictor, images: Sequence[NamedImage], unreadable: list[dict[str, str]]
) -> tuple[list[NamedImage], list[torch.Tensor]]:
    """Read images. Those that cannot be read are named on stderr, and added to `unreadable`."""
    readable, tensors = [], []
    for image in images:
        try:
            tensors.append(predictor.tensor(image.read()))
            readable.append(image)
        except DataError as error:
            reason = str(error) if image.name in str(error) else f"{image.name}: {error}"
            typer.echo(f"warning: {reason}", err=True)
            unreadable.append({"image": image.name, "reason": reason})
    return readable, tensors


def _described(image: NamedImage, answer: Prediction) -> dict[str, Any]:
    label = {} if image.label is None else {"label": image.label}
    answered = {"classes": answer.classes, "probabilities": answer.probabilities, "by_segment": answer.by_segment}
    return {"image": image.name, **label, **answered}


def _line(row: dict[str, Any]) -> str:
    label = f" (of class {row['label']})" if "label" in row else ""
    answers = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(row["classes"], row["probabilities"], strict=True))
    first, last = row["by_segment"][0], row["by_segment"][-1]
    return f"{row['image']}{label}: {answers}" + (f"   (before feedback: {first})" if first != last else "")


def _draw(predictor: Predictor, images: Sequence[NamedImage], tensors: Sequence[torch.Tensor], folder: Path, first: int) -> None:
    from tdformer.analysis.map_pictures import draw_maps

    for number, (image, picture) in enumerate(zip(images, draw_maps(predictor, tensors), strict=True), start=first):
        picture.save(folder / f"{number:04d}_{image.stem}.png")
