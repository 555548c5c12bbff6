"""The entry point of the command `tdformer`. It registers the commands and turns errors into messages and exit codes.

Commands import heavy packages inside their functions, so that `tdformer --help` loads neither torch nor MLflow.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.passing_trouble import is_of_a_disk, unavailable
from launch import current_folder
from launch.commands.analyze import analyze
from launch.commands.bench import bench_app
from launch.commands.checkpoint import checkpoint_app
from launch.commands.configs import configs
from launch.commands.data import data_app
from launch.commands.describe import describe
from launch.commands.evaluate import evaluate
from launch.commands.models import models
from launch.commands.options import plain_typer
from launch.commands.plan import plan
from launch.commands.predict import predict
from launch.commands.recipe import recipe
from launch.commands.runs import runs_app
from launch.commands.slurm import slurm_app
from launch.commands.study import study
from launch.commands.submit import submit
from launch.commands.train import train
from launch.exit_codes import EXIT_ERROR, EXIT_STOPPED
from launch.output import streams
from tdformer import garbage
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST, PeerLostError

app = plain_typer(help="Train, evaluate and analyse top-down spiking transformers.")
for command in (train, recipe, evaluate, predict, analyze, study, describe, submit, models, configs, plan):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")
app.add_typer(runs_app, name="runs")
app.add_typer(slurm_app, name="slurm", hidden=True)


def main() -> None:
    """Run the command line, and end the process with its exit code.

    A UserError is printed as one sentence by rank 0 alone, because all ranks raise the same one.
    """
    streams.protect()
    current_folder.leave_out()
    garbage.search_rarely()
    try:
        app()
    except UserError as error:
        _tell(error)
        _exit(EXIT_STOPPED if isinstance(error, UnavailableError) else EXIT_ERROR)
    except OSError as error:
        if not is_of_a_disk(error):
            raise
        print(f"error: {unavailable(error.filename or 'a file', error)}", file=sys.stderr)
        _exit(EXIT_STOPPED)
    except PeerLostError as lost:
        if str(lost):
            print(f"error: {lost}", file=sys.stderr)
        _exit(EXIT_PEER_LOST)
    except SystemExit as end:
        if isinstance(end.__context__, OSError):  # typer takes any broken pipe for the output's, and would end without a word
            raise end.__context__ from None
        _exit(_code_of_output(end.code if isinstance(end.code, int) else 0))


def _code_of_output(code: int) -> int:
    """Return the exit code of a command whose own is `code`. A result that could not be printed, on a full disk, is an error."""
    streams.flush()
    if code or (lost := streams.lost_output()) is None:
        return code
    print(f"error: the output cannot be written ({lost.strerror}); give the command again where there is room for it.", file=sys.stderr)
    return EXIT_ERROR


def _tell(error: UserError) -> None:
    from tdformer.distributed.launch_environment import rank_in

    if rank_in(os.environ) == 0:
        print(f"error: {error}", file=sys.stderr)


def _exit(code: int) -> NoReturn:
    """End the process. If torch is loaded, skip the interpreter's own teardown.

    In that teardown, C++ threads of gloo sometimes abort the process ("terminate called without an active exception"), and a
    finished run would be reported as failed.
    """
    if "torch" in sys.modules:
        if code != EXIT_PEER_LOST:  # After a lost rank the watchdog's threads still run, and exit functions could wait for them forever.
            atexit._run_exitfuncs()
        streams.flush()
        os._exit(code)
    sys.exit(code)
