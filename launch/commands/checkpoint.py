"""`tdformer checkpoint`: inspect checkpoints, import and export weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Ema, Json, Trained, Which, plain_typer
from launch.output.tables import show

if TYPE_CHECKING:
    from tdformer.config import ModelConfig


checkpoint_app = plain_typer(help="Inspect checkpoints, import and export weights.")


@checkpoint_app.command("inspect")
def inspect(trained: Trained, which: Which = "latest", as_json: Json = False) -> None:
    """Verify the files of a checkpoint, and show what it holds."""
    from tdformer.checkpoint.format import inspect as inspect_checkpoint
    from tdformer.checkpoint.store import find

    show(inspect_checkpoint(find(trained, which)), as_json)


@checkpoint_app.command("import")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A published checkpoint of QKFormer, Spikformer or SDT: .pth, .pt or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The folder of weights to write; a run starts from it with `init=FOLDER`.")],
    config: Annotated[Path | None, typer.Option(help="The YAML file of the run that will start from the weights.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `tdformer models`, in place of --config.")] = None,
    head: Annotated[Literal["keep", "new"], typer.Option(help="Keep the classifier, or leave it out to train a new one.")] = "keep",
    ignore_unused: Annotated[bool, typer.Option("--ignore-unused", help="Accept tensors that the network does not use.")] = False,
    key: Annotated[str | None, typer.Option(help="The entry of the file to read, if it holds several, such as model_ema.")] = None,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint into weights that a run can start from.

    The file is read as plain tensors, and every name and shape is checked.
    """
    from tdformer.models import pretrained

    if (config is None) == (model is None):
        raise UserError("give either --config FILE (the run that is to start from it) or --model NAME.")
    network, images = _network_and_images(config, model)
    imported = pretrained.read_published(file, network, head, ignore_unused, key)
    pretrained.write_weights(out, imported.state, network, {**pretrained.origin_of(file), "head": head, **images})
    chosen = network.backbone.without_tensors()
    if as_json:
        read = {name: getattr(imported, name) for name in ("used", "unused", "missing", "key", "other_keys")}
        typer.echo(json.dumps({"weights": str(out), **read, "chosen": chosen}))
        return
    typer.echo(f"{out}: {len(imported.used)} tensors of {file} are used")
    if imported.other_keys:
        typer.echo(f"they are those under {imported.key!r}; the file also holds {', '.join(imported.other_keys)}, see --key")
    for title, names in (("left out of the file", imported.unused), ("start fresh in the network", imported.missing)):
        typer.echo(f"{len(names)} {title}" + "".join(f"\n  {name}" for name in names))
    choices = ", ".join(f"{key} {str(value).lower()}" for key, value in chosen.items())
    typer.echo(f"no tensor shows the following; it is as {f'{model} has it' if model else f'{config} says'}: {choices}")
    if network.backbone.family == "qkformer" and not network.backbone.samples_share_projection:
        typer.echo(
            "note: published QKFormer weights were trained with model.backbone.samples_share_projection=true, which this network has off: "
            "it starts from a slightly other function, in which no sample depends on its batch (see tdformer/models/README.md)."
        )


def _network_and_images(config: Path | None, model: str | None) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the network to import into, and how its images are made, as far as that is known."""
    from tdformer.models.pretrained import input_described

    if config is not None:
        from tdformer.config.yaml_io import load_config

        loaded = load_config(config)
        return loaded.model, input_described(loaded.data)
    from tdformer.models.registry import data_of, find_model

    assert model is not None
    data = data_of(model)
    return find_model(model).config, input_described(data) if data else {}


@checkpoint_app.command("export")
def export_checkpoint(
    trained: Trained,
    out: Annotated[Path, typer.Argument(help="The folder of weights to write.")],
    which: Which = "latest",
    ema: Ema = False,
) -> None:
    """Write a trained network as model.safetensors and config.json, which load_pretrained, timm and `init` of a run read."""
    from tdformer.checkpoint.export import export
    from tdformer.checkpoint.store import find

    checkpoint = find(trained, which)
    train_state = export(checkpoint, out, averaged=ema)
    metric = "top1_ema" if ema else "top1"
    top1 = f", validation top-1 {train_state.metrics[metric]:.2f} %" if metric in train_state.metrics else ""
    typer.echo(f"{out}: the network of step {train_state.step}{top1}")
