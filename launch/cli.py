"""The `tdformer` command. Imports what it needs when it needs it: `tdformer --help` loads neither torch nor MLflow."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from data_pipelines.errors import UserError
from launch.commands.bench import bench_app
from launch.commands.checkpoint import checkpoint_app
from launch.commands.data import data_app
from launch.commands.models import models
from launch.commands.plan import plan
from launch.commands.runs import runs_app
from launch.commands.submit import slurm_app, submit
from launch.options import Config, Ema, Json, Overrides, Processes, Target, Trained, Which, plain_typer
from launch.output import show, show_evaluation
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST, PeerLostError

if TYPE_CHECKING:
    from tdformer.config import RunConfig

EXIT_ERROR = 2
EXIT_STOPPED = 75
"""Stopped by a signal or a deadline with its state saved: the same command goes on. (sysexits.h calls it EX_TEMPFAIL.)"""

app = plain_typer(help="Train, evaluate and look after top-down spiking transformers.")


@app.command()
def train(
    target: Target,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run lives; continued if it exists. Default: a new folder.")] = None,
    processes: Processes = 1,
) -> None:
    """Train a run, or continue it. Paths in a configuration are relative to the current folder.

    Starts its own processes with --processes N; or start it under torchrun or srun, one process per GPU.
    Exit codes: 0 finished; 1 a fault of the program; 2 something to mend, said in one sentence; 69 another rank died or
    hangs, the last whole checkpoint is kept; 75 stopped by a signal or a deadline with the state saved; 128 + n (with
    --processes) a rank was killed by signal n.
    """
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.launch_environment import started_by_launcher
    from tdformer.rundir.creation import config_of

    if target.is_dir():
        target, run_dir = config_of(target), run_dir or target
    if processes > 1 and not started_by_launcher(os.environ):
        raise typer.Exit(_train_in_processes(load_config(target, overrides or []), target, overrides or [], run_dir, processes))

    from tdformer.training.run import run_training

    stopped, summary = run_training(lambda: load_config(target, overrides or []), run_dir)
    if summary:
        typer.echo(summary)
    raise typer.Exit(EXIT_STOPPED if stopped else 0)


def _train_in_processes(config: RunConfig, target: Path, overrides: list[str], path: Path | None, processes: int) -> int:
    """Choose the run directory here, so that this process can close the MLflow run if its processes are killed."""
    from launch.local_processes import run_processes
    from tdformer.rundir import creation, run_lock
    from tdformer.rundir.advice import how_to_go_on
    from tdformer.rundir.run_dir import RunDir

    config.training.accumulation(processes)
    made, run_dir = path is None, RunDir(path) if path else creation.create_next(config)
    creation.check_fits(run_dir, config)
    run_lock.check_free(run_dir)
    typer.echo(f"starting {processes} processes; run directory {run_dir}")
    code = run_processes(processes, ["train", str(target), *overrides, "--run-dir", str(run_dir)])
    if code == EXIT_ERROR and made:
        creation.discard_if_unused(run_dir)
    if code not in (0, EXIT_ERROR, EXIT_STOPPED):
        from tdformer.tracking import sync

        sync.close(run_dir)
        typer.echo(how_to_go_on(run_dir, processes), err=True)
    return code


@app.command()
def evaluate(
    trained: Trained,
    overrides: Overrides = None,
    which: Which = "latest",
    suite: Annotated[
        Path | None, typer.Option(help="A folder of data sets, such as the corruptions of ImageNet-C: evaluate on each of them.")
    ] = None,
    ema: Ema = False,
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Accuracy of a checkpoint on the validation set, every sample counted once over all processes."""
    from tdformer.checkpoint import store
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.launch_environment import started_by_launcher

    if processes > 1 and not started_by_launcher(os.environ):
        from launch.local_processes import run_processes

        flags = [flag for flag, is_given in (("--ema", ema), ("--json", as_json)) if is_given]
        options = ["--which", which, *(["--suite", str(suite)] if suite else []), *flags]
        raise typer.Exit(run_processes(processes, ["evaluate", str(trained), *(overrides or []), *options]))

    from tdformer.inference.evaluate import evaluate_checkpoint, evaluate_suite

    checkpoint = store.find(trained, which)

    def load() -> RunConfig:
        return load_config(checkpoint.config, overrides or [])

    result = evaluate_suite(load, checkpoint, ema, suite) if suite else evaluate_checkpoint(load, checkpoint, ema)
    if result is not None:
        show_evaluation(result, as_json)


@app.command()
def describe(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that the run would have, over all machines.")] = 1,
    as_json: Json = False,
) -> None:
    """What a configuration would run: parameters, batches, steps, learning rate. Trains nothing."""
    from tdformer.config.yaml_io import load_config
    from tdformer.estimate.describe import describe as describe_run

    show(describe_run(load_config(config, overrides or []), processes), as_json)


app.command()(submit)
app.command()(models)
app.command()(plan)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
app.add_typer(runs_app, name="runs")
app.add_typer(slurm_app, name="slurm", hidden=True)


def main() -> None:
    """Entry point. A UserError is told as one sentence, once: all ranks raise the same one, rank 0 prints it."""
    try:
        app()
    except UserError as error:
        from tdformer.distributed.launch_environment import rank_in

        if rank_in(os.environ) == 0:
            print(f"error: {error}", file=sys.stderr)
        _leave(EXIT_ERROR)
    except PeerLostError as lost:
        if str(lost):
            print(f"error: {lost}", file=sys.stderr)
        _leave(EXIT_PEER_LOST)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)


def _leave(code: int) -> NoReturn:
    """End the process, past the interpreter's own teardown if torch is loaded.

    There, C++ threads of gloo now and then abort a process that has done all of its work ("terminate called without
    an active exception"), and a finished run would be told as failed.
    """
    if "torch" in sys.modules:
        if code != EXIT_PEER_LOST:  # then the watchdog's threads are at work still, and exit functions are not made for that
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
